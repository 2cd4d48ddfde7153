"""Damage to files, by kind: text, JSON, pictures, safetensors, and any bytes. All seeded."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

NASTY_TEXTS = (
    ["", " ", ".", "..", "../secret/secret", "/etc/hostname", "a\nb", "\x1b[31mred", "\x00"]
    + ["\u202egnp", "\x9b1m", "x" * 5000, "${oc.env:HOME}", "\\${x}", "%s%n", "nul\ud800"]
    + ["null", "true", "nan", "-inf", "1e999", "owner/name", "hub:owner/name", "file:///etc"]
)
NASTY_NUMBERS = [0, -1, 1, 255, 256, 65535, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30]
NASTY_NUMBERS += [0.5, -0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")]
NASTY_VALUES = [None, True, False, [], {}, [[]], [None], {"a": {}}, [1, 2]]


def nasty(draw: Random) -> Any:
    """A value that a file should not hold."""
    return draw.choice(draw.choice((NASTY_TEXTS, NASTY_NUMBERS, NASTY_VALUES)))


def mutate(file: Path, draw: Random, case: Path) -> str:
    """Damages a file -> what was done."""
    kinds = {
        ".json": _json, ".jsonl": _json, ".safetensors": _safetensors, ".png": _picture,
        ".jpg": _picture, ".yaml": _lines, ".txt": _lines,
    }  # fmt: skip
    kind = kinds.get(file.suffix, _bytes) if draw.random() < 0.85 else _bytes
    done = kind(file, draw)
    if draw.random() < 0.03:
        done = draw.choice((_empty, _gone, _folder, _outside, _loop))(file, draw)
    return f"{file.relative_to(case)}: {done}"


# ---- any file ----


def _bytes(file: Path, draw: Random) -> str:
    content = bytearray(file.read_bytes())
    what = draw.choice(("flip", "truncate", "insert", "zero", "repeat"))
    place = draw.randrange(len(content) + 1) if draw.random() < 0.5 else draw.randrange(64)
    place = min(place, len(content))
    if what == "flip" and content:
        for _ in range(draw.randint(1, 8)):
            at = min(len(content) - 1, place + draw.randrange(64))
            content[at] ^= 1 << draw.randrange(8)
    elif what == "truncate":
        del content[place:]
    elif what == "insert":
        content[place:place] = draw.randbytes(draw.randint(1, 40))
    elif what == "zero":
        content[place : place + 16] = bytes(len(content[place : place + 16]))
    else:
        content[place:place] = content[place : place + 200]
    file.write_bytes(bytes(content))
    return f"bytes {what} at {place}"


def _empty(file: Path, draw: Random) -> str:
    file.write_bytes(b"")
    return "empty"


def _gone(file: Path, draw: Random) -> str:
    file.unlink()
    return "gone"


def _folder(file: Path, draw: Random) -> str:
    file.unlink()
    file.mkdir()
    return "a folder"


def _outside(file: Path, draw: Random) -> str:
    file.unlink()
    file.symlink_to("/nowhere/at/all")
    return "a dead link"


def _loop(file: Path, draw: Random) -> str:
    file.unlink()
    file.symlink_to(file.name)
    return "a link to itself"


# ---- text ----


def _lines(file: Path, draw: Random) -> str:
    lines = file.read_text().splitlines() or [""]
    at = draw.randrange(len(lines))
    key, colon, _ = lines[at].partition(": ")
    what = draw.choice(("value", "value", "line", "double", "remove", "insert", "tag", "bom"))
    text = str(nasty(draw)).encode(errors="replace").decode()
    if what == "value":
        lines[at] = f"{key}{colon}{text}"
    elif what == "line":
        lines[at] = text
    elif what == "double":
        lines.insert(at, lines[at])
    elif what == "remove":
        del lines[at]
    elif what == "insert":
        more = ("{{{{", "- a", "? x", "&a [*a]", "\ttab: 1", "k: &b {x: *b}", "'", "unknown: 1")
        lines.insert(at, draw.choice(more))
    elif what == "tag":
        tags = ("!!python/object/apply:os.system ['true']", "!!binary x", "!!timestamp 2001-01-01")
        lines[at] = f"{key}: {draw.choice(tags)}"
    content = "\n".join(lines) + "\n"
    file.write_bytes((b"\xef\xbb\xbf" if what == "bom" else b"") + content.encode())
    return f"line {at + 1} {what}"


# ---- JSON ----


def _json(file: Path, draw: Random) -> str:
    lines = file.read_text().splitlines(keepends=True) if file.suffix == ".jsonl" else []
    at = draw.randrange(len(lines)) if lines else 0
    content = json.loads(lines[at] if lines else file.read_text())
    text, done = change_json(content, draw)
    if lines:
        what = draw.randrange(6)
        if what == 0:
            lines.insert(at, lines[at])
        elif what == 1:
            lines[at], lines[0] = lines[0], lines[at]
        else:
            lines[at] = text + "\n"
        text = "".join(lines)
    encoding = "utf-16" if draw.random() < 0.02 else "utf-8"
    mark = "\ufeff" if draw.random() < 0.03 else ""
    file.write_bytes((mark + text).encode(encoding, "surrogatepass"))
    return f"json {done}"


def change_json(content: Any, draw: Random) -> tuple[str, str]:
    """Changes one place of a JSON value -> its text, and what was done."""
    if draw.random() < 0.06:
        deep = draw.choice(("[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000))
        text = draw.choice((deep, "9" * 5000, "[1,]", '{"a": 1, "a": 2}', '"x"', "[]", "NaN"))
        return text, f"all of it is {text[:10]}"

    # a place anywhere, deeper ones as likely as others
    parent, key, path = {"": content}, "", ""
    root = parent
    while isinstance(parent[key], dict | list) and parent[key] and draw.random() < 0.9:
        parent = parent[key]
        key = draw.choice(list(parent)) if isinstance(parent, dict) else draw.randrange(len(parent))
        path += f"/{key}"
    what = draw.choice(("replace", "replace", "replace", "type", "remove", "double", "huge"))
    value = parent[key]
    if what == "replace":
        parent[key] = nasty(draw)
    elif what == "type":
        parent[key] = [value] if draw.random() < 0.3 else str(value)
    elif what == "remove" and parent is not root:
        del parent[key]
    elif what == "double" and isinstance(parent, list):
        parent.append(value)
    elif what == "double":
        parent[str(nasty(draw))] = value
    elif what == "huge":
        parent[key] = "@HUGE@"
    try:
        text = json.dumps(root[""])
    except (ValueError, RecursionError):
        text = "null"
    huge = draw.choice(("9" * 5000, "[" * 10_000 + "]" * 10_000, "1" + "0" * 400))
    return text.replace('"@HUGE@"', huge), f"{what} {path}"


# ---- pictures ----


def _picture(file: Path, draw: Random) -> str:
    with Image.open(file) as opened:
        image = opened.copy()
    changes: dict[str, Callable[[], Any]] = {
        "mode": lambda: image.convert(draw.choice(("1", "L", "P", "RGB", "RGBA", "LA", "CMYK"))),
        "16 bit": lambda: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
        "float": lambda: Image.fromarray(np.asarray(image.convert("L")).astype(np.float32)),
        "size": lambda: image.resize(
            draw.choice(((1, 1), (64, 1), (3, 1000), (65, 48), (48, 64), (128, 96)))
        ),
        "black": lambda: Image.new(image.mode, image.size),
        "noise": lambda: Image.fromarray(
            np.random.default_rng(draw.randrange(2**32)).integers(
                0, 256, (image.height, image.width), np.uint8
            )
        ),
    }
    what = draw.choice([*changes, "format", "claim", "exif", "bytes", "bytes"])
    if what == "bytes":
        return _bytes(file, draw)
    if what == "claim":
        return _claim_size(file, draw)
    kind = draw.choice(("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"))
    changed = changes[what]() if what in changes else image
    options: dict[str, Any] = {}
    if what not in ("format", "exif"):
        kind = "TIFF" if what == "float" else "PNG"
    if what == "exif":
        kind, changed = "JPEG", image.convert("RGB")
        options["exif"] = _exif(draw)
    stream = io.BytesIO()
    try:
        if kind == "PNG" and changed.mode == "CMYK":
            kind = "TIFF"
        changed.save(stream, kind, **options)
    except (OSError, ValueError):
        changed.convert("RGB").save(stream, kind, **options)
    file.write_bytes(stream.getvalue())
    return f"picture {what} {kind}"


def _claim_size(file: Path, draw: Random) -> str:
    """A header that says another size than the pixels have."""
    content = bytearray(file.read_bytes())
    sides = [draw.choice((0, 1, 63, 4096, 65_535, 2**31 - 1)) for _ in range(2)]
    if content[:4] == b"\x89PNG":
        import zlib

        content[16:24] = struct.pack(">II", *sides)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        at = max(content.find(b"\xff\xc0"), 0)
        content[at + 5 : at + 9] = struct.pack(">HH", *(min(side, 65_535) for side in sides))
    file.write_bytes(bytes(content))
    return f"claims {sides[0]} x {sides[1]}"


def _exif(draw: Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = draw.choice((0, 1, 2, 3, 5, 6, 8, 9, 65535))
    content = bytearray(exif.tobytes())
    if draw.random() < 0.5:
        for _ in range(3):
            content[draw.randrange(6, len(content))] = draw.randrange(256)
    return bytes(content)


# ---- safetensors ----


def _safetensors(file: Path, draw: Random) -> str:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    what = draw.choice(("length", "header", "header", "values", "rename", "dtype", "drop", "cut"))
    tensors = json.loads(header)
    names = [name for name in tensors if name != "__metadata__"]
    name = draw.choice(names)
    if what == "length":
        length = draw.choice((0, 1, length - 1, length + 1, 2**32, 2**63, 2**64 - 1))
        file.write_bytes(struct.pack("<Q", length) + header + data)
        return f"header of {length} bytes"
    if what == "header":
        text, done = change_json(tensors, draw)
        header = text.encode("utf-8", "surrogatepass")
    elif what == "values":
        start, end = tensors[name]["data_offsets"]
        values = draw.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f"))
        data = data[:start] + (values * (end - start))[: end - start] + data[end:]
        done = f"{name} is {values.hex()}"
    elif what == "cut":
        data, done = data[: draw.randrange(len(data) + 1)], "cut"
    elif what == "rename":
        tensors[str(nasty(draw))] = tensors.pop(name)
        header, done = json.dumps(tensors).encode(), f"{name} renamed"
    elif what == "dtype":
        tensors[name]["dtype"] = draw.choice(("I32", "U32", "F64", "BF16", "BOOL", "F8_E4M3"))
        header, done = json.dumps(tensors).encode(), f"{name} is {tensors[name]['dtype']}"
    else:
        start, end = tensors.pop(name)["data_offsets"]
        data = data[:start] + data[end:]
        for entry in tensors.values():
            offsets = entry.get("data_offsets")
            if offsets and offsets[0] >= end:
                entry["data_offsets"] = [offset - (end - start) for offset in offsets]
        header, done = json.dumps(tensors).encode(), f"{name} dropped"
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return f"safetensors {done}"
