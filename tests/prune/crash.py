"""A process that does a job and is killed, over and over: ``python -m tests.prune.crash PLAN.json``.

Every attempt is a child of its own, forked after the imports; it kills itself with SIGKILL just before the n-th call
that makes something durable or moves it. The plan is ``{"job", "source", "home", "settings", "points", "old"}``; what
was found after each kill goes to ``home/found.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from tests.pipeline.recover import small
from tests.prune import tiny
from tests.train.draft import small as drafting
from tests.train.pretrain import small as pretraining

from lowdim.pipeline.recover import distill
from lowdim.pipeline.recover.api import recover
from lowdim.prune.api import prune
from lowdim.runs.lock import LOCK
from lowdim.train.draft.api import distill_draft
from lowdim.train.pretrain.api import pretrain

BESIDE = ("steps", "out", "out.run.json", "out.log.jsonl", "cache")
STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")


def attempt(plan: dict[str, Any], out: Path, kill_at: int | None, overwrite: bool) -> int:
    """Prune in a child; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            steps = arm(kill_at)
            if plan.get("job") == "recover":
                if (lost := plan["settings"].pop("lost_in", None)) is not None:
                    distill._APART = 3
                    small.lose(setattr, "gradient", lost)
                recovery, text = small.recipe(**plan["settings"]), small.TEXT
                recover(plan["source"], recovery, calibration=text, out=out, resume=True, overwrite=overwrite)
            elif plan.get("job") == "pretrain":
                os.environ["LOWDIM_CACHE"] = str(out.parent / "cache")  # so that a kill hits what is made there, too
                made = pretraining.recipe(plan["source"], **plan["settings"])
                pretrain(made, out=out, resume=True, overwrite=overwrite)
            elif plan.get("job") == "draft":
                made_ = drafting.recipe(plan["source"], plan["settings"].pop("target"), **plan["settings"])
                distill_draft(made_, out=out, resume=True, overwrite=overwrite)
            else:
                recipe = tiny.recipe(**plan["settings"])
                prune(plan["source"], recipe, calibration=tiny.tokens(), out=out, resume=True, overwrite=overwrite)
            (out.parent / "steps").write_text(str(steps[0]))
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def arm(kill_at: int | None) -> list[int]:
    """Count the steps from now on, and die before step ``kill_at``."""
    count = [0]

    def counted(name: str) -> None:
        real = getattr(os, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return real(*args, **kwargs)

        setattr(os, name, step)

    for name in STEPS:
        counted(name)
    return count


def killed(plan: dict[str, Any], point: int, expected: dict[str, str], old: dict[str, str]) -> dict[str, Any]:
    """Kill a run at one point, look at what is there, resume it, and look again."""
    home = Path(plan["home"]) / f"at{point}"
    out = home / "out"
    home.mkdir()
    if old:
        shutil.copytree(Path(plan["old"]), out)
    died = attempt(plan, out, point, bool(old))
    seen = tiny.digest(out) if out.exists() else None
    if seen is not None:
        seen.pop(LOCK, None)  # of a run that was killed when all else was done
    kept = tiny.digest(home / "out.replaced") if (home / "out.replaced").exists() else None
    resumed = attempt(plan, out, None, bool(old) and seen != expected)
    last = tiny.digest(out) if out.exists() else {}
    return {
        "point": point,
        "died": died,
        "result": "new" if seen == expected else "old" if seen == (old or None) else "broken",
        "safe": seen is not None or not old or kept == old,
        "resumed": resumed,
        "differs": sorted(name for name in {*last, *expected} if last.get(name) != expected.get(name)),
        "beside": sorted(path.name for path in home.iterdir() if path.name not in BESIDE),
        "log": plan.get("job") != "pretrain"
        or pretraining.losses(out) == pretraining.losses(home.parent / "whole" / "out"),
    }


def main(plan: dict[str, Any]) -> None:
    home = Path(plan["home"])
    (home / "whole").mkdir()
    whole = home / "whole" / "out"
    assert attempt(plan, whole, None, overwrite=False) == 0
    steps = int((home / "whole" / "steps").read_text())
    expected = tiny.digest(whole)
    old = tiny.digest(Path(plan["old"])) if plan.get("old") else {}
    points = range(steps)[plan["points"][0] :: plan["points"][1]]
    found = [killed(plan, point, expected, old) for point in points]
    (home / "found.json").write_text(json.dumps({"steps": steps, "found": found, "again": again(plan, expected)}))


def again(plan: dict[str, Any], expected: dict[str, str]) -> dict[str, Any]:
    """Kill one and the same run again and again, each time a little later after its start, until it gets through."""
    home = Path(plan["home"]) / "again"
    home.mkdir()
    kills, point = 0, 5
    while attempt(plan, home / "out", point, overwrite=False) != 0 and kills < 100:
        kills, point = kills + 1, point + 6
    return {"kills": kills, "same": tiny.digest(home / "out") == expected}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
