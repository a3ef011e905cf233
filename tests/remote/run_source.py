"""A job for tests of the worker: the request is Python source, run with what a job is given.

It runs inside a job process, so that a test can try there whatever a hostile block may.
"""

import torch


def execute(model, request, link, result, limits):
    scope = {"model": model, "link": link, "result": result, "limits": limits, "torch": torch}
    exec(compile(request.decode(), "<block>", "exec"), scope)
