"""`from insitu import ndif`, as older documents write it."""

import insitu


def test_older_documents_find_their_questions_to_a_server():
    from insitu import ndif

    assert ndif is insitu.ndif
    assert ndif.status is insitu.status
    assert ndif.compare is insitu.compare
    assert ndif.is_model_running is insitu.is_model_running
    assert callable(ndif.register)
