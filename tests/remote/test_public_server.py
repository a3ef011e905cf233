"""`insitu serve demo --trust public`, whole: a client, its jobs, and what is left of it."""

import time
from pathlib import Path

import demo_server
import pytest
import torch
from test_jail import FOUND

from insitu import CONFIG, LanguageModel
from insitu.remote.client import tracer as client

PROMPT = "The Eiffel Tower is in the city of"
HARM = {
    "a socket": "os.sys.modules['socket'].socket()",
    "a program": "os.execv('/bin/true', ['true'])",
    "a file": "open('/etc/passwd').read()",
    "a shell": "1 / (os.system('true') == 0)",
}


@pytest.mark.skipif(
    not (FOUND.landlock and FOUND.seccomp and FOUND.namespaces),
    reason="needs landlock, seccomp and namespaces",
)
def test_a_public_server_serves_its_model_and_nothing_else(tmp_path, monkeypatch):
    model = LanguageModel("demo")
    with (
        demo_server.demo_server(trust="public", folder=str(tmp_path)) as (url, key),
        CONFIG.APP.override(REMOTE_LOGGING=False),
    ):
        monkeypatch.setenv("INSITU_API_KEY", key)
        with model.trace(PROMPT, remote=url):
            model.transformer.h[2].output[:, -1] *= 2
            logits = model.lm_head.output.save()
        with model.generate(PROMPT, max_new_tokens=3, remote=url):
            ids = model.generator.output.save()
        with pytest.raises(ValueError, match="no such sentence"):
            with model.trace(PROMPT, remote=url):
                raise ValueError("no such sentence")
        monkeypatch.setattr(client.allowed, "check", lambda *args, **more: None)
        outcomes = {}
        for name, text in HARM.items():
            with model.trace(PROMPT, remote=url):
                every = ().__class__.__base__.__subclasses__()
                found = next(it for it in every if it.__name__ == "_wrap_close").__init__
                os = found.__globals__["sys"].modules["os"]
                try:
                    os.sys.modules["builtins"].eval(text, {"os": os})
                except BaseException as error:
                    outcome = type(error).__name__.save()
                else:
                    outcome = "done".save()
            outcomes[name] = outcome
        assert processes_of(tmp_path)
    with model.trace(PROMPT):
        model.transformer.h[2].output[:, -1] *= 2
        want = model.lm_head.output
    with model.generate(PROMPT, max_new_tokens=3):
        want_ids = model.generator.output
    torch.testing.assert_close(logits, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(ids, want_ids)
    assert "done" not in outcomes.values()
    deadline = time.monotonic() + 10
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(tmp_path) == []


def processes_of(folder):
    """Processes that work in a folder, or were told of it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(folder) in f"{(entry / 'cwd').readlink()}{(entry / 'cmdline').read_text()}":
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended, or is not ours
    return found
