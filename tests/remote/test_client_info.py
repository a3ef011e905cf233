"""Questions to a server, which server is meant, and jobs taken up from elsewhere."""

import os
import subprocess
import sys
import warnings
from importlib import metadata

import pytest
from fake_server import FakeServer, packed
from fake_workers import FakeWorkers, request
from loopback_server import running

import insitu
from insitu import CONFIG
from insitu.notebook import remote_status
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


# Whose key it is ----------------------------------------------------------------------------------


def bearers(server):
    """The keys that a server was sent, and forget them."""
    found = {headers.get("Authorization", "none") for _, _, headers, _ in server.asked}
    server.asked.clear()
    return found


@pytest.fixture
def elsewhere():
    with FakeServer() as fake:
        yield fake


def test_the_key_goes_to_the_server_it_is_for_and_to_no_other(server, elsewhere):
    CONFIG.API.HOST = server.url
    CONFIG.set_default_api_key("the-labs-key")
    insitu.whoami()
    insitu.jobs(server.url + "/")
    insitu.whoami(server.url.replace("127.0.0.1", "localhost"))
    assert bearers(server) == {"Bearer the-labs-key"}
    for ask in (insitu.whoami, insitu.jobs, insitu.status, insitu.compare):
        ask(elsewhere.url)
    assert bearers(elsewhere) == {"none"}


def test_a_key_of_the_environment_goes_to_no_stranger_either(server, elsewhere, monkeypatch):
    monkeypatch.setenv("INSITU_API_KEY", "their-key")
    CONFIG.API.HOST = server.url
    insitu.whoami(elsewhere.url)
    assert bearers(elsewhere) == {"none"}
    insitu.whoami(server.url)
    assert bearers(server) == {"Bearer their-key"}
    CONFIG.API.HOST = elsewhere.url
    insitu.whoami(server.url)
    insitu.whoami()
    assert (bearers(server), bearers(elsewhere)) == ({"none"}, {"Bearer their-key"})


def test_while_no_server_is_set_the_key_stays_on_this_machine(server):
    CONFIG.API.HOST = None
    CONFIG.set_default_api_key("the-labs-key")
    assert Connection.of(server.url).key == "the-labs-key"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Connection.of("http://models.example.org").key is None
        assert Connection.of("https://models.example.org").key is None
        assert Connection.of("https://127.0.0.1.example.org").key is None


@pytest.mark.parametrize(
    ("home", "remote"),
    [
        ("https://models.example.org", "http://models.example.org"),
        ("https://models.example.org", "https://models.example.org:8443"),
        ("https://models.example.org", "https://models.example.org.evil.net"),
        ("https://models.example.org", "https://evil.net/models.example.org"),
        ("https://models.example.org/lab", "https://models.example.org/other"),
        ("https://models.example.org", "http://127.0.0.1:8765"),
        ("http://127.0.0.1:8765", "http://127.0.0.1:8766"),
        ("http://127.0.0.1:8765", "http://127.0.0.1.evil.net:8765"),
        ("nonsense", "https://models.example.org"),
        ("http://[", "https://models.example.org"),
    ],
)
def test_what_is_another_server_is_read_from_the_whole_address(monkeypatch, home, remote):
    monkeypatch.delenv("INSITU_API_KEY", raising=False)
    with CONFIG.API.override(HOST=home, KEY="the-labs-key"):
        assert Connection.of(remote).key is None


@pytest.mark.parametrize(
    ("home", "remote"),
    [
        ("https://models.example.org", "https://MODELS.example.org:443/"),
        ("https://models.example.org/lab/", "https://models.example.org/lab"),
        ("http://localhost:8765", "http://127.0.0.1:8765"),
    ],
)
def test_the_same_server_may_be_written_otherwise(monkeypatch, home, remote):
    monkeypatch.delenv("INSITU_API_KEY", raising=False)
    with CONFIG.API.override(HOST=home, KEY="the-labs-key"):
        assert Connection.of(remote).key == "the-labs-key"


def test_a_server_that_wants_the_key_and_was_not_sent_it_is_told_of(server, elsewhere):
    CONFIG.API.HOST = server.url
    CONFIG.set_default_api_key("the-labs-key")
    elsewhere.answers["GET", "/v1/whoami"] = lambda request: request.refuse(
        401, "no key was sent.", "this server wants one.", "send one."
    )
    with pytest.raises(insitu.ServerRefusedError) as caught:
        insitu.whoami(elsewhere.url)
    assert caught.value.what == "no key was sent."
    assert caught.value.why == (
        f"the key of this process is for {server.url} alone, where CONFIG.API.HOST points."
    )
    assert elsewhere.url in caught.value.next
    assert "the-labs-key" not in str(caught.value)
    assert caught.value.status == 401


def test_a_key_that_is_given_to_a_connection_is_for_that_server(server, elsewhere):
    CONFIG.API.HOST = server.url
    CONFIG.set_default_api_key("the-labs-key")
    with Connection(elsewhere.url, "another") as connection:
        insitu.whoami(connection)
    assert bearers(elsewhere) == {"Bearer another"}


# A server that has work waiting -------------------------------------------------------------------


def test_who_asks_is_told_how_many_jobs_wait(tmp_path, monkeypatch):
    monkeypatch.delenv("INSITU_API_KEY", raising=False)
    with (
        running(tmp_path, FakeWorkers(room=1)) as (_, client),
        CONFIG.API.override(HOST=client.url, KEY=None),
    ):
        assert insitu.status().info["waiting"] == 0
        assert "no job waiting." in repr(remote_status.status())
        jobs = [client.send(request(["sleep", 60])) for _ in range(3)]
        client.until(jobs[0], "RUNNING")
        assert insitu.status().info["waiting"] == 2
        assert "waiting 2" in repr(insitu.status())
        assert "2 jobs waiting." in repr(remote_status.status())
        client.delete(f"/v1/jobs/{jobs[2]}")
        client.until(jobs[2], "CANCELLED")
        assert "1 job waiting." in repr(remote_status.status())
