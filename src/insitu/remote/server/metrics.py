"""`/metrics`: what Prometheus reads, as text.

insitu_jobs_ended_total{phase="COMPLETED"} 12
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from insitu.remote.protocol import ENDS
from insitu.remote.server.desk import Desk

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(desk: Desk, streams: int) -> str:
    """Everything that is counted and measured."""
    counts = desk.counts
    ended = {f'phase="{phase}"': counts.ended[phase] for phase in ENDS}
    now = Counter(f'phase="{job.phase}"' for job in desk.live.values())
    refused = {f'status="{status}"': number for status, number in counts.refused.items()}
    models = desk.workers.models()
    loaded = {f'model="{_quoted(it.name)}"': int(it.state == "ready") for it in models}
    running = {f'model="{_quoted(it.name)}"': it.jobs for it in models}
    parts = [
        _one("jobs_accepted_total", "counter", "Jobs taken in.", counts.accepted),
        _many("jobs_ended_total", "counter", "Jobs by how they ended.", ended),
        _many("jobs", "gauge", "Jobs that have not ended, by phase.", now),
        _one("queue_length", "gauge", "Jobs that wait.", len(desk.line)),
        _one("job_wait_seconds_sum", "counter", "Time that jobs waited.", counts.waited_s),
        _one("job_wait_seconds_count", "counter", "Jobs given to workers.", counts.begun),
        _one("job_run_seconds_sum", "counter", "Time that workers had jobs.", counts.ran_s),
        _one("job_run_seconds_count", "counter", "Jobs ended.", counts.ended.total()),
        _one("request_bytes_total", "counter", "Bytes of requests.", counts.bytes_in),
        _one("result_bytes_total", "counter", "Bytes of results sent.", counts.bytes_out),
        _many("refused_total", "counter", "Requests refused, by status.", refused),
        _many("model_loaded", "gauge", "Whether a model is in memory.", loaded),
        _many("model_jobs", "gauge", "Jobs running on a model.", running),
        _one("event_streams", "gauge", "Clients that follow a job.", streams),
        _one("store_pending", "gauge", "Rows not yet in the database.", desk.store.pending()),
        _one("store_trouble", "gauge", "The disk takes nothing.", int(bool(desk.store.trouble))),
    ]
    return "".join(parts)


def _one(name: str, kind: str, help: str, value: float) -> str:
    return _family(name, kind, help, [("", value)])


def _many(name: str, kind: str, help: str, values: Mapping[str, float]) -> str:
    return _family(name, kind, help, [(f"{{{labels}}}", value) for labels, value in values.items()])


def _family(name: str, kind: str, help: str, values: Iterable[tuple[str, float]]) -> str:
    head = f"# HELP insitu_{name} {help}\n# TYPE insitu_{name} {kind}\n"
    return head + "".join(f"insitu_{name}{labels} {value:.10g}\n" for labels, value in values)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
