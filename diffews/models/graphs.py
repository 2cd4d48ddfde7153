"""Graphs that `diffews export format=onnx` wrote: export.json, and onnxruntime. No torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffews.errors import InputError, refuse, shorten
from diffews.models.find import EXPORT
from diffews.runtime.files import hash_files, read_json

VERSION = 1  # of export.json
GRAPHS = ("encoder", "support", "query", "decoder")
PROVIDERS = ("OpenVINOExecutionProvider", "CPUExecutionProvider")  # by default the first there is


def read_export(folder: Path, check_files: bool = True) -> dict[str, Any]:
    """Reads export.json of a folder that holds ONNX graphs.

    check_files: compare every file with its hash.

    Raises:
        InputError: for a file that is broken, of another format or version, or not whole.

    """
    file = folder / EXPORT
    record = read_json(file)
    if record.get("format") != "onnx":
        raise InputError(f"{file}: format is {shorten(record.get('format'))}, not onnx; make one "
                         "with `diffews export format=onnx`")
    if record.get("version") != VERSION:
        raise InputError(f"{file}: version {shorten(record.get('version'))} is not {VERSION}, "
                         "which this program reads; export the weights again")

    # what is read of it must be there, and of its kind
    with refuse(f"{file} is broken", cure="export the weights again"):
        for name, kind in (("image_size", int), ("multiple", int | None), ("dtype", str),
                           ("weights_sha256", str), ("threshold", float | int),
                           ("threshold_rule", str), ("files", dict)):
            if not isinstance(record[name], kind):
                raise ValueError(f"{name} is {shorten(record[name])}")
        for name in ("image_size", "multiple"):
            if record[name] is not None and not record[name] > 0:
                raise ValueError(f"{name} is {record[name]}")
        for name in GRAPHS:
            graph = record["graphs"][name]
            if graph["file"] not in record["files"]:
                raise ValueError(f"{name}: files do not name {shorten(graph['file'])}")
        widths = {entry["name"]: entry["shape"][-1]
                  for entry in record["graphs"]["query"]["inputs"][1:]}
        if not widths or not all(isinstance(width, int) for width in widths.values()):
            raise ValueError("the query's inputs are not those of a bank")

    for name, digest in record["files"].items():
        if Path(name).name != name:
            raise InputError(f"{file} names {shorten(name)}, which is no file beside it")
        if not (folder / name).is_file():
            raise InputError(f"{file} names {shorten(name)}, which is not there")
        if check_files and hash_files([folder / name]) != digest:
            raise InputError(f"{folder / name} is not the file that {file} names (its hash "
                             "differs); copy the folder, or export the weights, again")
    return record


def find_providers(device: str = "auto") -> list[Any]:
    """Returns onnxruntime's execution providers for a device: auto, cpu, cuda, cuda:1 ...

    auto is OpenVINO's where it is installed (the package onnxruntime-openvino), else the CPU's.

    Raises:
        InputError: for a device that the installed onnxruntime has no provider for.

    """
    there = import_onnxruntime().get_available_providers()
    if device == "auto":
        return [name for name in PROVIDERS if name in there]
    kind, _, number = device.partition(":")
    names = [name for name in there if name.lower() == f"{kind}executionprovider".lower()]
    if not names or not (number or "0").isdigit():
        raise InputError(f"device={device}: the installed onnxruntime has no provider for it; it "
                         f"has {', '.join(there)}")
    return [(names[0], {"device_id": int(number)}) if number else names[0]]


def import_onnxruntime() -> Any:
    """Returns the package, or says in one line that it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"ONNX graphs need the package onnxruntime ({error}); "
                         "pip install 'diffews[onnx]'") from None
    return onnxruntime


def open_graph(file: Path, providers: Sequence[Any], threads: int) -> Any:
    """Opens a graph -> onnxruntime.InferenceSession.

    providers: as onnxruntime takes them. threads: of the CPU; 0 takes all cores.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    with refuse(f"{file} does not load", cure="export the weights again"):
        return onnxruntime.InferenceSession(str(file), options, providers=list(providers))
