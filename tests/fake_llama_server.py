"""A small HTTP server that plays llama-server, honestly or not: what it does is named by FAKE_SERVER.

Its model is a table made from the ids, or with FAKE_ORACLE the oracle on the file that it is given, rounding as a real
one does. `place` puts it into a tree as an executable `llama-server`.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

N_VOCAB = 40
NUMERICS = {
    "activation": "int8_token",
    "kv": "f16",
    "query": "f16",
    "probs": "f16",
    "head": "f16",
    "rope": "f32_iterated",
}


def place(root: Path, name: str = "llama-server") -> Path:
    """An executable in a tree."""
    path = root / "build" / "bin" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({__file__!r}, run_name='__main__')\n")
    path.chmod(0o755)
    return path


def table(ids: tuple[int, ...], n_vocab: int = N_VOCAB) -> list[float]:
    """Logits after some ids."""
    state = 17
    for i in ids:
        state = (state * 31 + i + 1) % 65521
    return [4.0 * math.sin(state * 0.37 + 1.7 * k) for k in range(n_vocab)]


def log_probabilities(logits: list[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(math.fsum(math.exp(x - top) for x in logits))
    return [x - total for x in logits]


def piece(i: int, mode: str) -> str | list[int]:
    """As /tokenize with pieces has it: two share a text, one is a byte, one is a part of a character."""
    if mode == "older_ambiguous" and i < 6:
        return "same"
    return {7: "a", 8: "a", 9: [0xE5, 0xAE], 10: [0xAD]}.get(i, f"t{i}")


def shown(i: int, mode: str) -> str:
    text = piece(i, mode)
    if isinstance(text, str):
        return text
    return f"byte: \\x{text[0]:x}" if len(text) == 1 else bytes(text).decode("utf-8", "replace")


class Answers(BaseHTTPRequestHandler):
    mode, key, kept, oracle, tokenizer = "good", "", (), None, None
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.say({"status": "ok"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {self.key}":
            self.say({"error": {"message": "wrong key"}}, 401)
        elif self.path == "/tokenize":
            self.say(self.tokens(asked))
        elif self.path == "/detokenize":
            self.say({"content": "".join(shown(i, self.mode) for i in asked["tokens"])})
        else:
            self.complete(asked)

    def tokens(self, asked):
        if self.mode == "nonsense_tokens":
            return {"tokens": ["a", -1]}
        if asked.get("with_pieces"):
            if self.mode == "older_without_pieces":
                return {"tokens": asked["content"]}
            return {"tokens": [{"id": i, "piece": piece(i, self.mode)} for i in asked["content"]]}
        if self.tokenizer is not None:
            return {"tokens": list(self.tokenizer.encode(asked["content"], add_special=asked["add_special"]))}
        return {"tokens": [1] * asked["add_special"] + [ord(c) % N_VOCAB for c in asked["content"]]}

    def complete(self, asked):
        kind, ids = type(self), tuple(asked["prompt"])
        if len(ids) == 3 and self.mode == "dies":
            sys.stderr.write("GGML_ASSERT(n > 0) failed\n")
            sys.stderr.flush()
            os.abort()
        if len(ids) == 3 and self.mode == "hangs":
            time.sleep(600)
        if len(ids) == 3 and self.mode == "refuses":
            return self.say({"error": {"code": 400, "message": "the request exceeds the context"}}, 400)
        same = 0
        if asked["cache_prompt"] and self.mode != "never_keeps":
            while same < min(len(ids) - 1, len(kind.kept)) and ids[same] == kind.kept[same]:
                same += 1
        kind.kept = ids if asked["cache_prompt"] or not self.mode.startswith("older") else ()
        logits = table(ids) if self.oracle is None else self.oracle(ids, len(ids) - same)
        for i, bias in asked["logit_bias"]:
            logits[i] = -math.inf if bias is False else logits[i] + bias
        answer = {"tokens_evaluated": len(ids), "truncated": False, "timings": {"prompt_n": len(ids) - same}}
        told = log_probabilities(logits)
        form = self.older if self.mode.startswith("older") else self.newer
        answer["completion_probabilities"] = form(logits, told)
        data = json.dumps(self.lie(answer, told) if len(ids) == 3 else answer)
        if len(ids) == 3 and self.mode == "not_json":
            data = data[:-20]
        return self.say(data)

    def newer(self, logits, told):
        best = max(range(len(told)), key=told.__getitem__)
        order = sorted(range(len(told)), key=lambda i: -told[i])
        return [{"id": best, "logprob": told[best], "top_logprobs": [{"id": i, "logprob": told[i]} for i in order]}]

    def older(self, logits, told):
        order = sorted(range(len(told)), key=lambda i: -told[i])
        if order[0] == 9:  # a part of a character is not listed
            return []
        listed = [{"tok_str": shown(i, self.mode), "prob": math.exp(told[i])} for i in order]
        return [{"content": shown(order[0], self.mode), "probs": listed}]

    def lie(self, answer, told):
        mode, entry = self.mode, next(iter(answer["completion_probabilities"]), {})
        listed = entry.get("top_logprobs") or entry.get("probs") or [{}]
        number, name = ("logprob", "id") if "top_logprobs" in entry else ("prob", "tok_str")
        lie = mode.removeprefix("older_")
        if lie == "few":
            del listed[-1]
        elif lie == "nan":
            listed[3][number] = math.nan
        elif lie == "text":
            listed[3][number] = "0.5"
        elif lie == "twice":
            listed[3][name] = listed[2][name]
        elif lie == "other_ids":
            listed[3][name] = N_VOCAB if name == "id" else "nothing"
        elif lie == "halved":
            for one in listed:
                one[number] = one[number] - math.log(2) if number == "logprob" else one[number] / 2
        elif lie == "zero":
            listed[-2][number] = -3.4e38 if number == "logprob" else 0.0
        elif lie == "other_choice":
            entry["id" if name == "id" else "content"] = listed[5][name]
        elif lie == "fewer_tokens":
            answer["tokens_evaluated"] = 2
        elif lie == "truncates":
            answer["truncated"] = True
        elif lie == "no_probabilities":
            del answer["completion_probabilities"]
        elif lie == "other_form":
            answer["completion_probabilities"] = [{"tokens": []}]
        elif lie == "two":
            answer["completion_probabilities"] *= 2
        elif lie == "list":
            return [answer]
        elif lie == "long":
            answer["padding"] = "x" * (8 << 20)
        return answer

    def say(self, content, status=200):
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def asked_for(name):
    return sys.argv[sys.argv.index(name) + 1]


def oracle_of(path):
    """The real thing, for a climb: row by row, its batch as long as what is evaluated."""
    from reference.oracle import Oracle
    from reference.runner import Request
    from reference.semantics import Semantics

    wrong = os.environ["FAKE_ORACLE"]
    semantics = Semantics() if wrong == "contract" else Semantics(activation=wrong)
    oracle = Oracle(path, semantics=semantics, numerics=NUMERICS)

    def logits(ids, evaluated):
        n_batch = max(len(ids) - 1, 1) if evaluated == 1 else len(ids)
        return oracle.run(Request(ids=ids, n_batch=n_batch)).logits[-1].tolist()

    return logits


def main():
    mode = os.environ.get("FAKE_SERVER", "good")
    if "--help" in sys.argv:
        print("--flash-attn [on|off|auto]\n--no-warmup  skip it")
        return 0
    if mode == "dies_at_start":
        print("error: unknown model architecture: 'bitnet-b1.58'", file=sys.stderr)
        return 1
    if mode == "hangs_at_start":
        print("loading", file=sys.stderr, flush=True)
        time.sleep(600)
    Answers.mode, Answers.key = mode, asked_for("--api-key")
    if "FAKE_ORACLE" in os.environ:
        from bitnet.api import load

        Answers.oracle, Answers.tokenizer = staticmethod(oracle_of(asked_for("-m"))), load(asked_for("-m")).tokenizer
    try:
        ThreadingHTTPServer((asked_for("--host"), int(asked_for("--port"))), Answers).serve_forever()
    except OSError:
        print("couldn't bind", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
