"""Where a tree keeps its headers and libraries, what its headers declare, and how the interface is compiled once."""

import shutil

import pytest

from reference import bitnet_cpp_build as build
from reference.runner import ReferenceUnavailableError

LLAMA_H = (
    "struct p { bool flash_attn; /* enum flash_attn_type old; */ }; // op_offload\nint llama_model_get_vocab(void);\n"
)


def tree(root, *, headers="3rdparty/llama.cpp/include", ggml="3rdparty/llama.cpp/ggml/include", library="build/a/src"):
    for folder, name, text in ((headers, "llama.h", LLAMA_H), (ggml, "ggml.h", "enum { GGML_TYPE_I2_S = 36 };\n")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_text(text)
    for name in ("libllama.so", "libggml.so") if library else ():
        (root / library).mkdir(parents=True, exist_ok=True)
        (root / library / name).write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("headers", "ggml", "library"),
    [
        ("3rdparty/llama.cpp/include", "3rdparty/llama.cpp/ggml/include", "build/3rdparty/llama.cpp/src"),
        ("include", "ggml/include", "build/bin"),
        ("include", "include", "lib"),
    ],
)
def test_trees_of_every_shape(tmp_path, headers, ggml, library):
    found = build.find_tree(tree(tmp_path, headers=headers, ggml=ggml, library=library))
    assert [path.name for path in found.libraries] == ["libllama.so", "libggml.so"]
    assert (tmp_path / headers).resolve() in found.includes


def test_features_are_read_from_code_not_from_comments(tmp_path):
    found = build.find_tree(tree(tmp_path))
    assert found.features == {"flash_attn", "llama_model_get_vocab", "GGML_TYPE_I2_S"}
    assert found.fork


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ReferenceUnavailableError, match="there is no folder"):
        build.find_tree(tmp_path / "nowhere")
    with pytest.raises(ReferenceUnavailableError, match=r"no llama\.h"):
        build.find_tree(tmp_path)
    root = tree(tmp_path / "a", library=None)
    with pytest.raises(ReferenceUnavailableError, match="no libllama"):
        build.find_tree(root)
    (root / "3rdparty/llama.cpp/ggml/include/ggml.h").unlink()
    with pytest.raises(ReferenceUnavailableError, match=r"no ggml\.h"):
        build.find_tree(root)


def test_the_newest_build_is_taken(tmp_path):
    import os

    root = tree(tmp_path)
    tree(root, library="build-old/bin")
    for name in ("libllama.so", "libggml.so"):
        os.utime(root / "build-old/bin" / name, (1, 1))
    assert all("build-old" not in str(path) for path in build.find_tree(root).libraries)


def test_a_compiler_that_refuses_is_quoted(tmp_path, monkeypatch):
    if shutil.which("c++") is None:
        pytest.skip("no compiler here")
    monkeypatch.setattr(build.platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    with pytest.raises(ReferenceUnavailableError, match="does not compile"):
        build.compile_shim(build.find_tree(tree(tmp_path / "t")))
    assert list((tmp_path / "cache/shim").iterdir()) == []


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("reference.llama_cpp_build.shutil.which", lambda *_, **__: None)
    with pytest.raises(ReferenceUnavailableError, match=r"no C\+\+ compiler"):
        build.compile_shim(build.find_tree(tree(tmp_path)))


def test_the_folder_is_what_the_variable_names(monkeypatch, tmp_path):
    monkeypatch.delenv(build.DIRECTORY_VARIABLE, raising=False)
    assert build.declared() is None
    monkeypatch.setenv(build.DIRECTORY_VARIABLE, str(tmp_path))
    assert build.declared() == tmp_path


def test_a_tree_without_git_has_no_commit(tmp_path):
    assert build.version_of(tmp_path) == "of an unknown commit"
