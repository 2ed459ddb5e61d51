"""Record what llama.cpp makes of the texts in fixtures/texts: python -m tests.record_tokens"""

import json
import platform
import tempfile
from pathlib import Path

from fixtures.texts import probes, recorded
from reference.llama_cpp import LlamaCpp


def main():
    vocabularies = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in recorded.VOCABULARIES:
            path = Path(folder) / "vocabulary.gguf"
            probes.write(path, probes.metadata(name))
            llama = LlamaCpp(path, vocab_only=True)
            info = llama.info
            vocabularies[name] = recorded.measure(
                lambda texts, special, llama=llama: llama.tokenize_many(
                    texts, add_special=special, parse_special=special
                )
            )
            llama.close()
            print(name, flush=True)
    document = {
        "provenance": {
            "how": "llama_tokenize on files that hold the vocabulary alone; digests by fixtures/texts/recorded.py",
            "engine": "llama.cpp",
            "version": info.version,
            "library_sha256": info.library_sha256,
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "vocabularies": vocabularies,
    }
    recorded.RECORDED.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
