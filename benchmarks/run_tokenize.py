"""Measures JPEGs to token shards; the command is `python -m benchmarks.run tokenize`."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.results_file import write_result
from benchmarks.rounds import Row, begin, check_machine, result_name
from benchmarks.tokenize_parts import (
    JPEG_SIZE,
    QUALITY,
    SETTINGS,
    Parts,
    Setting,
    make_job,
    make_model,
    make_pictures,
    storage,
)

CODES = (4096, 16384, 65536, 2**18)
MORE = 4  # times as many pictures, to see whether memory grows


def _protocol(setting: Setting) -> Row:
    width, height = JPEG_SIZE
    return {
        "pictures": f"{setting.pictures} JPEGs of {width} x {height} pixels, quality {QUALITY}, cut at random from "
        "scikit-image's photographs; in the page cache",
        "model": "LGQConfig() with random weights" if setting.full_model else "the built-in checkpoint",
        "setting": asdict(setting),
        "time": "pictures a second; model loaded and warm; encoder alone, JPEG decoder alone and the whole take turns "
        "in rounds, and ratios are taken within a round; medians",
        "gate": "tokens in the files equal those of the model on the image processor's own pixels, in equal batches",
        "processes": "on one thread each, pinned to a core; one alone and two at once take turns",
        "memory": "peak resident set of one process",
        "storage": f"{setting.storage_rows} rows of 16 x 16 uniformly random tokens; 200 rows read at random",
    }


def measure_parts(parts: Parts, setting: Setting) -> Row:
    """Rates of the parts and the whole, or why it was refused."""
    count = len(parts.pixels)
    parts.encode()
    for workers in setting.workers:
        parts.whole(workers)
        if reason := parts.gate():
            return {"refused": f"workers={workers}: {reason}"}
    seconds: dict[str, list[float]] = {}
    for _ in range(setting.rounds):
        seconds.setdefault("encode", []).append(parts.encode())
        seconds.setdefault("look_up", []).append(parts.look_up())
        for workers in setting.workers:
            seconds.setdefault(f"read_{workers}", []).append(parts.read(workers))
            seconds.setdefault(f"whole_{workers}", []).append(parts.whole(workers))
        seconds.setdefault("write", []).append(parts.write())
    middle = statistics.median
    rates = {name: count / middle(times) for name, times in seconds.items()}
    result: Row = {
        "encoder": rates["encode"],
        "lookup_share": middle(a / b for a, b in zip(seconds["look_up"], seconds["encode"], strict=True)),
        "writing_share": middle(seconds["write"]) / middle(seconds[f"whole_{setting.workers[0]}"]),
        "decoding_share": middle(seconds[f"read_{setting.workers[0]}"])
        / middle(seconds[f"whole_{setting.workers[0]}"]),
        "rounds_s": seconds,
        "workers": {},
    }
    for workers in setting.workers:
        slower = [max(a, b) for a, b in zip(seconds["encode"], seconds[f"read_{workers}"], strict=True)]
        ratios = [a / b for a, b in zip(slower, seconds[f"whole_{workers}"], strict=True)]
        result["workers"][str(workers)] = {
            "jpeg_decoder": rates[f"read_{workers}"],
            "whole": rates[f"whole_{workers}"],
            "against_slower": middle(ratios),
        }
    return result


class _Process:
    """A `benchmarks.tokenize_process`."""

    def __init__(self, *words: Any) -> None:
        command = [sys.executable, "-m", "benchmarks.tokenize_process", *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        if self._line() != "ready":
            raise RuntimeError(f"{' '.join(command)} ended with status {self.process.wait()}")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def begin(self) -> None:
        """Lets it work."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Waits for what it measured."""
        answer: dict[str, float] = json.loads(self._line())
        return answer

    def close(self) -> None:
        """Ends it."""
        self.process.communicate()


def measure_processes(pictures: Path, output: Path, name: str) -> Row:
    """One process against two that share the same work."""
    setting = SETTINGS[name]
    one = _Process(pictures, output / "one", name, 0, 1, 0)
    two = [_Process(pictures, output / "two", name, rank, 2, rank) for rank in range(2)]
    alone, together = [], []
    for _ in range(setting.rounds):
        one.begin()
        alone.append(one.answer()["seconds"])
        for process in two:
            process.begin()
        together.append(max(process.answer()["seconds"] for process in two))
    for process in (one, *two):
        process.close()
    return {
        "one_pictures_per_s": setting.pictures / statistics.median(alone),
        "two_pictures_per_s": setting.pictures / statistics.median(together),
        "ratio": statistics.median(a / b for a, b in zip(alone, together, strict=True)),
        "rounds_s": {"one": alone, "two": together},
    }


def measure_memory(pictures: Path, more: Path, output: Path, name: str) -> Row:
    """Peak of a process over some pictures, and over several times as many."""
    result: Row = {"pictures": [], "peak_mib": []}
    for folder in (pictures, more):
        process = _Process(folder, output / "memory", name, 0, 1, 0)
        process.begin()
        result["peak_mib"].append(process.answer()["peak_mib"])
        result["pictures"].append(len(list(folder.iterdir())))
        process.close()
    return result


def run_tokenize(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measures all of it and writes the file; 1 where wrong tokens were refused."""
    check_machine(arguments, parser)
    device, name = arguments.device, "quick" if arguments.quick else arguments.device
    setting = SETTINGS[name]
    load, _ = begin(arguments)
    result: Row = {"protocol": _protocol(setting), "seed": arguments.seed, "load_average": load}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_pictures(place / "pictures", setting.pictures, arguments.seed)
        model = make_model(place / "model", setting.full_model, arguments.seed)
        parts = Parts(make_job(place / "pictures", place / "tokens", model, setting), device)
        result["parts"] = measure_parts(parts, setting)
        del parts
        if device == "cpu" and "refused" not in result["parts"]:
            (place / "more").mkdir()
            for file in (place / "pictures").iterdir():
                for copy in range(MORE):
                    (place / "more" / f"{copy}-{file.name}").hardlink_to(file)
            result["processes"] = measure_processes(place / "pictures", place, name)
            result["memory"] = measure_memory(place / "pictures", place / "more", place, name)
        result["storage"] = [
            storage(place / "storage", setting.storage_rows, codes, arguments.seed) for codes in CODES
        ]
    if device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    path = write_result(result_name("tokenize", device, arguments.quick), result, arguments.output)
    print(
        json.dumps(
            {key: result[key] for key in ("parts", "processes", "memory", "storage") if key in result}, indent=1
        )
    )
    print(path)
    return int("refused" in result["parts"])


__all__ = ["measure_parts", "run_tokenize"]
