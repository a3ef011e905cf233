"""Questions to a server, which server is meant, and jobs taken up from elsewhere."""

import os
import subprocess
import sys
from importlib import metadata

import pytest
from fake_server import FakeServer, packed

import insitu
from insitu import CONFIG
from insitu.remote.client.connection import Connection
from insitu.remote.client.job import RemoteJob


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("INSITU_API_KEY", raising=False)
    with FakeServer() as fake, CONFIG.API.override(HOST=fake.url, KEY="my-key"):
        yield fake


def test_true_means_the_server_that_is_set(server):
    assert Connection.of(True).url == server.url
    assert Connection.of(True) is Connection.of(server.url + "/")
    assert Connection.of(True).key == "my-key"
    own = Connection(server.url)
    assert Connection.of(own) is own


def test_the_key_of_the_environment_comes_first(server, monkeypatch):
    first = Connection.of(True)
    monkeypatch.setenv("INSITU_API_KEY", "their-key")
    assert Connection.of(True).key == "their-key"
    assert Connection.of(True) is not first


def test_no_server_is_told_with_the_ways_to_one(server):
    with CONFIG.API.override(HOST=None), pytest.raises(insitu.UsageError) as caught:
        Connection.of(True)
    for word in ("insitu serve demo", "CONFIG.API.HOST", "remote="):
        assert word in caught.value.next


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://host:99999",
        "http://h/?q",
        "",
        "http://[",
        "x\x1b",
    ],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(insitu.UsageError, match="not the address of a server") as caught:
        Connection.of(address)
    assert "\x1b" not in str(caught.value)


def test_a_key_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(insitu.UsageError, match="a name before its host") as caught:
        Connection("https://me:verysecret@host")
    assert "verysecret" not in str(caught.value)


@pytest.mark.parametrize("remote", [False, 7, None])
def test_what_names_no_server_is_refused(remote):
    with pytest.raises(insitu.UsageError, match="remote= was given"):
        Connection.of(remote)


@pytest.mark.parametrize("key", ["a b", "é", "a\r\nX-Evil: 1"])
def test_a_key_that_cannot_be_sent_is_refused(key):
    with pytest.raises(insitu.UsageError, match="the key holds a character") as caught:
        Connection("http://127.0.0.1:1", key)
    assert key not in str(caught.value)


def test_a_key_over_plain_http_to_another_machine_warns():
    with pytest.warns(insitu.InsituWarning, match="sent unencrypted"):
        Connection("http://models.example.org", "my-key")
    Connection("https://models.example.org", "my-key")
    Connection("http://models.example.org")


def test_status_lists_the_models(server):
    status = insitu.status()
    assert [model["name"] for model in status.models] == ["demo", "gpt2"]
    text = repr(status)
    for word in (server.url, "demo", "ready", "5.0 MB", "absent", "trust self"):
        assert word in text
    assert "<table" in status._repr_html_()
    assert "<script" not in status._repr_html_()


def test_what_a_server_says_is_shown_as_text(server):
    server.facts["/v1/models"] = {"models": [{"name": "<script>x</script>\x1b[2J", "state": 7}]}
    status = insitu.status(remote=server.url)
    assert "<script>" not in status._repr_html_()
    assert "\x1b" not in repr(status)
    server.facts["/v1/models"] = [3]
    with pytest.raises(insitu.ServerError, match="no list of objects"):
        insitu.status()


def test_a_model_runs_when_it_is_ready_under_any_of_its_names(server):
    assert insitu.is_model_running("demo")
    assert insitu.is_model_running("insitu/demo")
    assert not insitu.is_model_running("gpt2")
    assert not insitu.is_model_running("no such model")


def test_compare_flags_what_differs(server):
    compared = insitu.compare()
    assert compared.versions["torch"] == (metadata.version("torch"), "1.0.0")
    assert compared.versions["strange"] == (None, "9")
    assert compared.different == ("torch",)
    assert compared.critical == ("torch", "transformers")  # the server has no transformers
    lines = {line[2:].split()[0]: line for line in repr(compared).splitlines()[1:-1]}
    assert lines["torch"].startswith("!")
    assert not lines["insitu"].startswith("!")
    assert "critical: differs" in compared._repr_html_()


def test_another_patch_version_is_not_critical(server):
    here = metadata.version("torch").split("+")[0]
    server.facts["/v1/env"] = {
        "torch": here.rpartition(".")[0] + ".99",
        "insitu": metadata.version("insitu"),
        "transformers": metadata.version("transformers"),
    }
    compared = insitu.compare()
    assert compared.different == ("torch",)
    assert compared.critical == ()
    assert "No critical package differs." in repr(compared)


def test_whoami_says_what_the_server_says(server):
    assert insitu.whoami() == {"name": "ada[2J", "scopes": ["run"], "expires": None}


def test_jobs_are_listed_and_taken_up_again(server):
    server.plan = lambda job: job.status("RUNNING").say("log", text="hi").end(result=packed(x=1))
    with Connection(server.url) as connection:
        sent = RemoteJob.sent(connection, b"a request")
    assert [row["id"] for row in insitu.jobs().rows] == [sent.id]
    assert sent.id in repr(insitu.jobs())
    job = insitu.job(sent.id)
    assert job.result(10) == {"x": 1}
    assert job.logs == ["hi"]
    assert job.title == "m"


def test_a_job_is_taken_up_from_another_process(server):
    server.plan = lambda job: (job.ask(0, 0, packed(x=1), 0.2), job.end(result=packed(x=[1, 2])))
    with Connection(server.url) as connection:
        sent = RemoteJob.sent(connection, b"a request")
    code = f"import insitu; print(insitu.job({sent.id!r}, remote={server.url!r}).result(20))"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:insitu", "-c", code],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.stdout == "{'x': [1, 2]}\n", done.stderr
    assert server.paths("POST") == ["/v1/jobs"]  # its local() part is not run there


def test_a_job_that_is_not_there_is_lost(server):
    with pytest.raises(insitu.JobLostError, match="no such job"):
        insitu.job("job-99")
    with pytest.raises(insitu.UsageError, match="not the id of a job"):
        insitu.job("../whoami")
