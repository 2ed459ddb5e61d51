"""What a fuzzer runs: every stage that reads an untrusted file. Any error but the package's own is a finding."""

from __future__ import annotations

import resource
import time

import fuzz_files
import numpy as np

from bitnet.architecture import read_config
from bitnet.chat import render, template_of
from bitnet.errors import BitNetError
from bitnet.gguf import from_bytes
from bitnet.tokenizer import from_gguf
from bitnet.validate import validate_weights
from bitnet.weights import read_weights

MAX_SECONDS = 1.0  # of CPU, for one input
MAX_GROWTH = 256 << 20  # bytes by which one input of a few kilobytes may raise the peak of memory


class Finding(Exception):  # noqa: N818  # what a fuzzer is after
    """An input that takes too long or too much memory."""


TARGETS = ("container", "model", "files")


def examine(raw: bytes, target: str = "model") -> str:
    """Take bytes as far as they go; returns the last stage they passed.

    Args:
        raw: The input.
        target: `model` is a GGUF, `container` its header and layout alone, `files` any other file.

    Raises:
        Finding: They took too long, or too much memory.
        Exception: Anything but a `BitNetError` is a finding as well.
    """
    start, peak = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with np.errstate(all="ignore"):  # warnings are for people, and these numbers are noise
        stage = fuzz_files.stages(raw) if target == "files" else _stages(raw, container=target == "container")
    seconds = time.thread_time() - start
    if seconds > MAX_SECONDS:
        raise Finding(f"{seconds:.2f} s, at stage {stage}")
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    if growth > MAX_GROWTH:
        raise Finding(f"{growth >> 20} MiB, at stage {stage}")
    return stage


def _stages(raw: bytes, *, container: bool) -> str:
    stage = "nothing"
    try:
        gguf = from_bytes(raw, "m.gguf")
        for name in gguf.tensors:
            gguf.raw(name)
        stage = "container"
        if container:
            return stage
        _tokenizer(gguf)
        config, _ = read_config(gguf)
        stage = "config"
        validate_weights(gguf, config)
        read_weights(gguf, config)
        stage = "weights"
    except BitNetError as error:
        str(error)  # a message can always be made
    return stage


def _tokenizer(gguf) -> None:
    """Of any file that has one, whatever else is wrong with it."""
    if "tokenizer.ggml.model" not in gguf.metadata:
        return
    try:
        tokenizer = from_gguf(gguf)
        tokenizer.decode(tokenizer.encode("Once, <s> upon a time\n"))
        render(template_of(gguf).text, [{"role": "user", "content": "Hi"}], bos_token="<s>", eos_token="</s>")
    except BitNetError as error:
        str(error)  # a message can always be made
