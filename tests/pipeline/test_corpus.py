import pytest
import torch

from pipeline import corpus
from pipeline.models import folder_of

TOKENIZER = folder_of("models/tiny") / "tokenizer.json"


def test_held_out_files_and_training_files_share_nothing_and_leave_nothing_out():
    paths = corpus.relative_paths()
    held_out = {path for path in paths if corpus.is_held_out(path)}
    assert 0.05 * len(paths) < len(held_out) < 0.2 * len(paths)
    both = sum(1 for _ in corpus.texts(held_out=True)) + sum(1 for _ in corpus.texts(held_out=False))
    assert both == len(paths) and len(held_out) == sum(1 for _ in corpus.texts(held_out=True))


def test_corpus_is_the_standard_library_without_its_tests_and_without_installed_packages():
    paths = corpus.relative_paths()
    assert "argparse.py" in paths and len(paths) > 300
    assert not any(part in path.split("/") for path in paths for part in ("test", "tests", "site-packages"))


def test_the_split_of_a_file_depends_on_its_own_path_only():
    paths = corpus.relative_paths()
    assert [corpus.is_held_out(path) for path in paths] == [corpus.is_held_out(path) for path in reversed(paths)][::-1]


def test_corpus_hash_is_the_same_twice():
    first = corpus.corpus_sha256()
    corpus.corpus_sha256.cache_clear()
    assert corpus.corpus_sha256() == first and len(first) == 64


def test_held_out_tokens_are_text_ids_and_decode_to_the_source():
    from tokenizers import Tokenizer

    tokens = corpus.held_out_tokens(TOKENIZER)
    assert tokens.dtype == torch.int64 and len(tokens) > 100_000
    assert int(tokens.min()) >= 0 and int(tokens.max()) < corpus.N_TEXT_IDS
    first = next(corpus.texts(held_out=True))
    assert Tokenizer.from_file(str(TOKENIZER)).decode(tokens[: len(first)].tolist()).startswith(first)


def test_training_text_is_cached_and_its_second_reading_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "relative_paths", lambda: ["argparse.py", "ast.py", "enum.py", "typing.py"])
    tokenizer, first = corpus.training_text(tmp_path)
    monkeypatch.setattr(corpus, "train_tokenizer", lambda: pytest.fail("trained again"))
    again, second = corpus.training_text(tmp_path)
    assert torch.equal(first, second) and tokenizer.to_str() == again.to_str()
    assert not list(tmp_path.glob("*.tmp*"))


def test_missing_tokenizer_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer_path=.*nowhere\.json: no such file; valid"):
        corpus.held_out_tokens(tmp_path / "nowhere.json")
