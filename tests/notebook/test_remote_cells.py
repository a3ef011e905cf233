"""Cells on a real server: what comes back, what is shown, and what is refused before it is sent."""

import re
import threading
import time
from pathlib import Path

import pytest
import torch

from insitu import CONFIG, LanguageModel
from insitu.errors import (
    FunctionWhitelistError,
    InsituError,
    JobLostError,
    ServerUnreachableError,
    UsageError,
)
from insitu.notebook import remote_card
from insitu.notebook.complete import candidates
from insitu.notebook.remote_cell import CellTracer
from insitu.notebook.request import parse
from insitu.remote.client.job import RemoteJob
from insitu.twins.ledger import ledger

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "'The Eiffel Tower is in the city of'"
AWAY = f"%%trace model {PROMPT} --remote"


@pytest.fixture(scope="module")
def demo():
    return LanguageModel("demo")


@pytest.fixture
def there(cell, team_server, demo, monkeypatch):
    """Runs cells of a notebook whose server is a real one: `there(code)` gives a `Shown`."""
    url, key = team_server
    monkeypatch.delenv("INSITU_API_KEY", raising=False)
    cell.names["model"] = demo
    with CONFIG.API.override(HOST=url, KEY=key):
        yield cell


def refused(cell, code, kind=UsageError):
    error = cell(code).error
    assert type(error) is kind, repr(error)
    assert all((error.what, error.why, error.next))
    return error


# Without a server ---------------------------------------------------------------------------------


def test_a_cell_in_this_process_gives_what_a_plain_block_gives(cell):
    assert cell(f"{AWAY} local\nhere = model.lm_head.output[:, -1].save()").error is None
    with cell.names["model"].trace(PROMPT[1:-1]):
        want = cell.names["model"].lm_head.output[:, -1].save()
    assert torch.equal(cell.names["here"], want)


@pytest.mark.parametrize("option", ["--scan", "--cache all", "--grad x", "--edit e", "--time"])
def test_what_only_goes_here_is_refused_with_a_way_out(cell, option):
    error = refused(cell, f"{AWAY} local {option}\nx = model.lm_head.output.save()")
    assert error.what == f"--remote and {option.split()[0]} exclude each other."
    assert "x" not in cell.names


def test_the_view_of_a_pass_is_refused_too(cell):
    assert "insitu.show" in refused(cell, f"{AWAY} --view lens\nmodel.lm_head.output").next


def test_a_background_without_a_server_is_refused(cell):
    line = f"%%trace model {PROMPT} --background"
    assert "--remote" in refused(cell, f"{line}\nmodel.lm_head.output").next
    assert "no job" in refused(cell, f"{AWAY} local --background\nmodel.lm_head.output").why


@pytest.mark.parametrize(
    ("line", "server"),
    [
        ("model 'a' --remote", ""),
        ("model 'a' --remote local --quiet", "local"),
        ("model 'a' --remote http://127.0.0.1:1 --generate 3", "http://127.0.0.1:1"),
        ("model --remote 'https://a.b' 'a'", "'https://a.b'"),
        ("model 'a' --remote url", "url"),
        ("model --remote=url 'a'", "url"),
        ("model --remote 'a'", ""),
        ("model 'a' --remote --quiet", ""),
    ],
)
def test_the_address_may_be_left_out_written_or_named(line, server):
    found = parse(line)
    assert (found.remote, found.server, found.model) == (True, server, "model")
    assert found.prompt == "'a'"


def test_an_address_that_is_none_is_told_before_anything_runs(cell):
    assert "is not the address" in refused(cell, f"{AWAY}='ftp'\nmodel.lm_head.output").what
    cell.names["port"] = 8765
    assert "is int, not text" in refused(cell, f"{AWAY} port\nmodel.lm_head.output").what


def test_a_cell_without_a_server_says_how_to_get_one(cell):
    with CONFIG.API.override(HOST=None):
        assert "insitu serve" in refused(cell, f"{AWAY}\nmodel.lm_head.output").next
        assert "insitu serve" in refused(cell, "%remote").next


def test_nobody_there_is_told_in_three_lines_without_the_libraries_own(cell, demo):
    cell.names["model"] = demo
    shown = cell(f"{AWAY} http://127.0.0.1:9\nx = model.lm_head.output.save()")
    assert type(shown.error) is ServerUnreachableError
    assert "urllib3" not in shown.printed.partition("ServerUnreachableError:")[0]


def test_a_setting_stays_when_the_new_server_does_not_answer(cell):
    with CONFIG.API.override(HOST="http://127.0.0.1:1", KEY="before"):
        refused(cell, "%remote http://127.0.0.1:9 after", ServerUnreachableError)
        assert (CONFIG.API.HOST, CONFIG.API.KEY) == ("http://127.0.0.1:1", "before")


def test_words_that_are_no_server_are_refused(cell):
    assert "no address" in refused(cell, "%remote somewhere").what
    assert "3 words" in refused(cell, "%remote http://a b c").what


def test_a_key_that_the_environment_overrules_is_refused(cell, monkeypatch):
    monkeypatch.setenv("INSITU_API_KEY", "theirs")
    assert "INSITU_API_KEY" in refused(cell, "%remote http://127.0.0.1:9 mine").what


def test_a_key_of_an_older_name_does_not_overrule_one_that_is_given(cell, monkeypatch):
    monkeypatch.delenv("INSITU_API_KEY", raising=False)
    monkeypatch.setenv("NDIF_API_KEY", "older")
    refused(cell, "%remote http://127.0.0.1:9 mine", ServerUnreachableError)  # so it was asked


def test_a_body_is_needed_and_may_not_await(cell):
    assert "no body" in refused(cell, f"{AWAY} local\n# nothing").what
    assert "awaits" in refused(cell, f"{AWAY} local\nawait x").what


def test_other_inputs_than_text_are_asked_for_in_the_cell(cell):
    cell.names["ids"] = torch.tensor([[1, 2]])
    line = "%%trace model --invoke ids --invoke ids --remote local"
    assert "tracer.invoke" in refused(cell, f"{line}\nmodel.lm_head.output").next


def test_an_error_is_at_the_lines_of_the_cell(cell):
    code = f"{AWAY} local\n# a comment\n\nbad = model.lm_head.output[0, 9999].save()"
    shown = cell(code)
    assert type(shown.error) is IndexError
    assert "----> 4 bad = model" in shown.printed
    assert "tracer.py" not in shown.printed
    shown = cell(f"{AWAY} local\nx = 1\n  y = 2")
    assert (type(shown.error), shown.error.lineno) == (IndentationError, 3)


def test_what_may_not_run_there_is_refused_at_its_line(cell):
    error = refused(cell, f"{AWAY} local\n\nopen('x')", FunctionWhitelistError)
    assert "line 3" in error.what
    assert "local()" in error.next


def test_text_over_several_lines_stays_as_it_was(cell):
    cell(f"{AWAY} local\ntext = '''a\n  b\n'''\nkept = insitu_save(text)".replace(
        "insitu_save(text)", "[text].save()"
    ))  # fmt: skip
    assert cell.names["kept"] == ["a\n  b\n"]


def test_a_cell_that_saves_nothing_says_what_to_write(cell):
    shown = cell(f"{AWAY} local\nscores = model.lm_head.output * 2\nlast = scores[0]")
    assert shown.text.startswith("Nothing came back")
    assert "Write last = scores[0].save()" in shown.text
    assert "Write logits = model" in cell(f"{AWAY} local\nprint(1)").text
    cell("import insitu")
    part = "with insitu.local():\n    here = %pwd\nx = 1"
    assert "Write logits = model" in cell(f"{AWAY} local\n{part}").text
    assert "insitu.save(a + b)" in cell(f"{AWAY} local\na = b = 1\nc = a + b").text


def test_a_large_value_is_told_how_to_be_smaller(monkeypatch):
    monkeypatch.setattr(remote_card, "LARGE_BYTES", 1_000)
    scores = torch.zeros(1, 10, 300)
    (said,) = remote_card.smaller("scores", scores, vocabulary=300)
    assert "scores is 12 kB" in said
    order = [".argmax(-1) would be 80 B", "[:, -1] would be 1.2 kB", ".half() would be 6 kB"]
    assert [said.index(it) for it in order] == sorted(said.index(it) for it in order)
    assert scores.argmax(-1).nbytes == 80
    assert scores[:, -1].nbytes == 1_200
    assert scores.half().nbytes == 6_000
    assert said.endswith("Write scores = ….argmax(-1).save().")
    cell = "x = 1\nscores = model.lm_head.output.save()"
    (said,) = remote_card.smaller("scores", scores, 300, cell)
    assert said.endswith("Write scores = model.lm_head.output.argmax(-1).save().")
    (said,) = remote_card.smaller("kept", [torch.zeros(200), torch.zeros(200)])
    assert "1.6 kB in 2 tensors" in said
    (said,) = remote_card.smaller("ids", torch.zeros(500, dtype=torch.int64))
    assert "only the part" in said
    assert [*remote_card.smaller("few", torch.zeros(250))] == []
    same = torch.zeros(200)
    assert remote_card.size_of([same, {"again": same}]) == 800


def test_the_words_are_completed():
    assert "--remote" in candidates("%%trace model 'a' --re", {})[1]
    assert "--background" in candidates("%%trace model 'a' --b", {})[1]
    assert candidates("%jobs --re", {}) == ("--re", ["--remote"])


# With a server ------------------------------------------------------------------------------------


def test_a_cell_runs_there_and_its_names_come_back(there):
    shown = there(f"{AWAY}\nprint('hello')\nlogits = model.lm_head.output[:, -1].save()\nx = 1")
    assert shown.error is None
    with there.names["model"].trace(PROMPT[1:-1]):
        want = there.names["model"].lm_head.output[:, -1].save()
    assert torch.allclose(there.names["logits"], want, atol=1e-5)
    assert "x" not in there.names
    words = re.findall(r"- (\w+): ", shown.printed)
    assert words == ["RECEIVED", "APPROVED", "RUNNING", "LOG", "COMPLETED"]
    assert shown.text.startswith(f"Back from {CONFIG.API.HOST}\n")
    assert re.search(r"logits +tensor +float32 +\[1, 2884\] +11\.5 kB", shown.text)
    assert re.search(r"[\d.]+ s in all: [\d.]+ s waiting, [\d.]+ s running, ", shown.text)
    assert "<script" not in shown.html
    (entry,) = [one for one in ledger if one.code.startswith(f"{AWAY}\nprint('hello')")]
    assert entry.run_s > 0


def test_several_prompts_and_a_generation_run_there(there):
    there(f"{AWAY} --generate 3 --quiet\nids = tracer.result.save()")
    assert there.names["ids"].shape == (1, 8 + 3)
    there(f"{AWAY} --invoke 'Once' --quiet\nboth = model.lm_head.output[:, -1].save()")
    assert there.names["both"].shape == (2, 2884)


def test_a_part_stays_here(there):
    there.names["seen"] = []
    code = "h = model.lm_head.output\nwith insitu.local():\n    seen.append(h.shape)\n"
    there("import insitu")
    assert there(f"{AWAY} --quiet\n{code}last = h[0, -1].save()").error is None
    assert there.names["seen"] == [(1, 8, 2884)]


def test_an_error_there_is_at_the_lines_of_the_cell(there):
    shown = there(f"{AWAY}\nx = 1\nbad = model.lm_head.output[0, 9999].save()")
    assert type(shown.error) is IndexError
    assert "----> 3 bad = model" in shown.printed
    assert "client" not in shown.printed
    assert there(f"{AWAY} --quiet\nok = model.lm_head.output[0, -1].save()").error is None


def test_a_job_in_the_background_is_left_in_job(there):
    shown = there(f"{AWAY} --background\nmean = model.lm_head.output.mean().save()")
    job = there.names["job"]
    assert type(job) is RemoteJob
    assert job.id in shown.text
    assert job.result(timeout_s=60)["mean"].ndim == 0


def test_a_job_is_found_again_followed_and_recorded(there, tmp_path):
    from insitu.widgets import Recording, RemoteLog

    there(f"{AWAY} --background\nfor i in range(3):\n    tracer.log('line', i)")
    job = there.names["job"]
    job.wait(60)
    file = tmp_path / "run.jsonl"
    there.names["file"] = file
    there("import insitu\nlog = insitu.show(insitu.job(job.id), record=file)")
    log = there.names["log"]
    assert isinstance(log, RemoteLog)
    until(lambda: log.phase == "COMPLETED")
    log.close()
    lines = [line for line in RemoteLog(Recording(file)).lines if line.startswith("line")]
    assert lines == job.logs == ["line 0", "line 1", "line 2"]


def test_the_jobs_of_a_server_are_a_dock(there):
    there(f"{AWAY} --background\ntracer.log('of the first')")
    first = there.names["job"]
    first.wait(60)
    there("dock = %jobs --remote")
    dock = there.names["dock"]
    until(lambda: dock.phase(first.id) == "COMPLETED")
    assert f"({first.id}): COMPLETED" in dock.text()
    dock.chosen = first.id
    assert "of the first" in dock.html()


def test_a_job_is_cancelled_from_another_thread_while_its_cell_waits(there):
    from insitu.widgets import RemoteLog

    def cancel(job):
        log = RemoteLog(job)
        until(lambda: log.phase == "RUNNING")
        log.answer_cancel({})

    before = CellTracer._watch
    threads = []

    def watch(tracer, job):
        threads.append(threading.Thread(target=cancel, args=(job,)))
        threads[-1].start()
        before(tracer, job)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CellTracer, "_watch", watch)
        began = time.monotonic()
        shown = there(f"{AWAY}\nwhile True:\n    pass")
    threads[0].join()
    assert type(shown.error) is JobLostError
    assert "cancelled" in shown.error.what
    assert time.monotonic() - began < 15


def test_the_server_is_set_and_shown(there, team_server):
    url, key = team_server
    with CONFIG.API.override(HOST=None, KEY=None):
        there.names.update(url=url, key=key)
        shown = there("%remote url key")
        assert shown.error is None
        assert (url, key) == (CONFIG.API.HOST, CONFIG.API.KEY)
        assert there("again = %remote").error is None
        table = repr(there.names["again"])
        assert table.startswith(f"{url}: 1 model\n")
        assert re.search(r"demo +ready +LanguageModel", table)
        assert "You are self, who may run, read, admin." in table
        assert key not in table + repr(shown)
        assert isinstance(there("%remote url wrong").error, InsituError)
        assert key == CONFIG.API.KEY


def test_the_programs_of_the_page_run(there, team_server):
    page = (ROOT / "docs" / "remote.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(programs) > 12
    url, key = team_server
    there.names.update(url=url, key=key)
    for program in programs:
        shown = there(program)
        assert shown.error is None, program + shown.printed


def until(true, patience_s=60):
    """Wait for something that another thread brings about."""
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
