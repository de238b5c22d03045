"""
The files of a tokenizer, and the rules by which they may be replaced.

tokenizer.json is the tokenizer and the only file that is loaded. It is renamed into place last, so where it exists,
the set is whole. tokenizer.pkl and token_bytes.pt are written beside it for upstream nanochat, which reads no other
file. Loading a pickle runs any code in it. So a foreign pickle is read on request only, by an unpickler that knows a
single name and puts an inert class in its place.

The content of a tokenizer is {"pattern": regex, "ranks": tokens in base64, place in the list = rank = id,
"special_tokens": name -> id}; its hash is the tokenizer_id. torch is imported only to write token_bytes.pt.
"""

import base64
import contextlib
import io
import json
import pickle
from pathlib import Path

import tiktoken

from nanochat.common import atomic_writer, hash_json, paste_command, read_json, read_regular, to_paste

SCHEMA_VERSION = 1
JSON_NAME, PICKLE_NAME, TOKEN_BYTES_NAME = "tokenizer.json", "tokenizer.pkl", "token_bytes.pt"
CONTENT_KEYS = ("pattern", "ranks", "special_tokens")
BOS = "<|bos|>"


# -----------------------------------------------------------------------------
# Content and tiktoken.Encoding

def build_encoding(pattern: str, ranks: list[bytes], special_tokens: dict[str, int], source) -> tiktoken.Encoding:
    """Raises ValueError, which names `source`, for content that cannot tokenize every text or has gaps in its ids."""
    if (not all(isinstance(word, str) for word in (pattern, *special_tokens))
            or not all(isinstance(t, bytes) for t in ranks)):
        raise ValueError(f"{source}: not a tokenizer: expected a pattern, tokens made of bytes, names of special "
                         "tokens")
    if len(set(ranks)) != len(ranks) or not {bytes([b]) for b in range(256)} <= set(ranks):
        raise ValueError(f"{source}: not a byte-level BPE: expected distinct tokens, all 256 single bytes among them")
    ids = list(range(len(ranks), len(ranks) + len(special_tokens)))
    if BOS not in special_tokens or sorted(special_tokens.values()) != ids:
        raise ValueError(f"{source}: expected special tokens with ids from {len(ranks)} on, {BOS} among them; got "
                         f"{special_tokens}")
    return tiktoken.Encoding(name="rustbpe", pat_str=pattern, special_tokens=special_tokens,
                             mergeable_ranks={token: i for i, token in enumerate(ranks)})


def _encoding_from_state(state, source) -> tiktoken.Encoding:
    """state: the pickled state of an Encoding, a dict of its arguments (or the mere name of a published Encoding)."""
    if not isinstance(state, dict) or not {"pat_str", "mergeable_ranks", "special_tokens"} <= set(state):
        raise ValueError(f"{source}: expected the pickle of a trained tiktoken.Encoding, got {str(state)[:80]}")
    ranks, special_tokens = state["mergeable_ranks"], state["special_tokens"]
    for table in (ranks, special_tokens):
        if not isinstance(table, dict) or not all(type(i) is int for i in table.values()):
            raise ValueError(f"{source}: expected tables of tokens and ids, got {str(table)[:80]}")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{source}: expected the ranks 0 to {len(ranks) - 1}, each once")
    return build_encoding(state["pat_str"], sorted(ranks, key=ranks.get), special_tokens, source)


def encoding_content(enc: tiktoken.Encoding) -> dict:
    state = enc.__getstate__()  # tiktoken has no other way to ask for the pattern
    enc = _encoding_from_state(state, f"encoding {enc.name!r}")  # the same checks as in reading
    ranks = [base64.b64encode(enc.decode_single_token_bytes(i)).decode() for i in range(len(state["mergeable_ranks"]))]
    return {"pattern": state["pat_str"], "ranks": ranks, "special_tokens": state["special_tokens"]}


def content_encoding(content: dict, source) -> tiktoken.Encoding:
    return build_encoding(content["pattern"], [base64.b64decode(token) for token in content["ranks"]],
                          content["special_tokens"], source)


# -----------------------------------------------------------------------------
# Reading

def read_tokenizer_json(tokenizer_dir) -> dict:
    """tokenizer.json as a dict.

    Raises FileNotFoundError, which says how to make it, and ValueError for a file that was changed or damaged.
    """
    path = Path(tokenizer_dir) / JSON_NAME
    foreign = path.with_name(PICKLE_NAME)
    import_it = paste_command(["python", "-m", "scripts.tok_train", "--import-pkl", foreign])
    if not path.exists():
        if foreign.exists():
            raise FileNotFoundError(f"{path.parent} has a {PICKLE_NAME} but no {JSON_NAME}, and pickles are not "
                                    f"loaded; import it once: {import_it}")
        raise FileNotFoundError(to_paste(f"no tokenizer in {path.parent}; make it: python -m scripts.tok_train"))
    try:
        stored = read_json(path)
    except ValueError:
        stored = {}
    if stored.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version {str(stored['schema_version'])[:40]}: expected {SCHEMA_VERSION}; "
                         "it is from another version of this project")
    try:
        intact = stored["tokenizer_id"] == hash_json({key: stored[key] for key in CONTENT_KEYS})
    except (KeyError, ValueError):
        intact = False
    if not intact:
        raise ValueError(f"{path} is damaged (its content does not match its tokenizer_id); restore it from a copy, or "
                         f"from the file beside it: {import_it}")
    return stored


class _EncodingState:
    """Stands in for tiktoken's Encoding: it keeps the state of the pickle and does nothing with it."""
    state = None

    def __setstate__(self, state):
        self.state = state


class _EncodingUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only tiktoken.core.Encoding is admitted")
        return _EncodingState


def read_pickle(path) -> tiktoken.Encoding:
    """The Encoding in upstream's tokenizer.pkl. No code of the file is run; any other object in it is a ValueError."""
    raw = read_regular(path)
    try:
        loaded = _EncodingUnpickler(io.BytesIO(raw)).load()
    except Exception as e:  # a made-up pickle can raise anything, see the pickle module
        raise ValueError(f"{path}: refused as a pickled tokenizer: {e or type(e).__name__}") from e
    if not isinstance(loaded, _EncodingState):
        raise ValueError(f"{path}: expected a pickled tiktoken.Encoding, got {type(loaded).__name__}")
    return _encoding_from_state(loaded.state, path)


# -----------------------------------------------------------------------------
# Writing

def save_encoding(enc: tiktoken.Encoding, tokenizer_dir):
    """Write the three files: all of them, or none. ValueError if that would replace a tokenizer in use."""
    tokenizer_dir = Path(tokenizer_dir)
    content = encoding_content(enc)
    tokenizer_id = hash_json(content)
    replaces = _check_replace(tokenizer_dir, tokenizer_id)
    text = json.dumps({"schema_version": SCHEMA_VERSION, "tokenizer_id": tokenizer_id, **content}, indent=1)
    with contextlib.ExitStack() as stack:  # unwinds from the end: tokenizer.json is renamed last
        files = {name: stack.enter_context(atomic_writer(tokenizer_dir / name))
                 for name in (JSON_NAME, PICKLE_NAME, TOKEN_BYTES_NAME)}
        files[JSON_NAME].write(text.encode("utf-8"))
        pickle.dump(content_encoding(content, tokenizer_dir), files[PICKLE_NAME], protocol=4)
        _write_token_bytes(content, files[TOKEN_BYTES_NAME])
        for f in files.values():
            f.flush()  # a full disk fails here, where the old files are still whole
        if replaces:
            (tokenizer_dir / JSON_NAME).unlink(missing_ok=True)  # the old one must not stand beside new files


def count_token_bytes(content: dict) -> list[int]:
    """Bytes of UTF-8 that each token stands for, by id; 0 for special tokens, which are not part of the text.

    Counted on raw bytes: as a string, a token that is half a character would be U+FFFD, which has 3 bytes.
    """
    return [len(base64.b64decode(token)) for token in content["ranks"]] + [0] * len(content["special_tokens"])


def _write_token_bytes(content, file):
    import torch
    torch.save(torch.tensor(count_token_bytes(content), dtype=torch.int32), file)


def _check_replace(tokenizer_dir: Path, new_id: str) -> bool:
    """True if another tokenizer is there and may be replaced. ValueError if it is in use, or was not written here.

    A tokenizer is in use when a checkpoint of the same base directory names it. Upstream's checkpoints name no
    tokenizer, so they may need any tokenizer that is there. A damaged tokenizer.json protects nothing. But a
    pickle beside it is overwritten only by the same tokenizer.
    """
    try:
        old_id = read_tokenizer_json(tokenizer_dir)["tokenizer_id"]
    except (FileNotFoundError, ValueError):
        old_id = None
    elsewhere = "train into another base directory: set NANOCHAT_BASE_DIR"
    if _pickle_id(tokenizer_dir / PICKLE_NAME) not in (None, old_id, new_id):
        raise ValueError(f"{tokenizer_dir / PICKLE_NAME} is a tokenizer that was not written here, and would be "
                         f"overwritten; import it (--import-pkl), move it away, or {elsewhere}")
    if old_id in (None, new_id):
        return old_id is None
    for path in sorted(tokenizer_dir.parent.glob("*_checkpoints/*/meta_*.json")):
        try:
            named = read_json(path).get("tokenizer_id", old_id)
        except ValueError:
            continue  # not a checkpoint that could be loaded
        if named == old_id:
            raise ValueError(f"the tokenizer in {tokenizer_dir} ({old_id[:12]}) belongs to the checkpoint {path} and "
                             f"is not replaced by another one ({new_id[:12]}); {elsewhere}")
    return True


def _pickle_id(path) -> str | None:
    """tokenizer_id of a pickle; None where there is no file; "unreadable" for a pickle of something else."""
    if not path.exists():
        return None
    try:
        return hash_json(encoding_content(read_pickle(path)))
    except ValueError:
        return "unreadable"
