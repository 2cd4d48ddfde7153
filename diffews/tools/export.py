"""Writes trained weights as four graphs that need none of this code: ONNX, or torch.export."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from diffews.errors import InputError, refuse
from diffews.models.attention import SupportBank
from diffews.models.find import EXPORT, WeightDir, hash_weights, latent_factor
from diffews.models.unet import TIMESTEP
from diffews.models.vae import decode_at_once, encode_at_once
from diffews.pipeline import DiffewsPipeline
from diffews.runtime.files import check_new, hash_files, new_folder, versions, write_atomic
from diffews.runtime.loading import build_pipeline

OPSET = 20  # the first that has GELU
ENDINGS = {"onnx": "onnx", "torch": "pt2"}  # of the files of each format
WEIGHTS = "weights.data"  # what the ONNX graphs share
ALIGNED = 64  # bytes; tensors are mapped into memory as they lie in the file
INLINE = 1024  # bytes up to which a tensor stays in its graph
TRACED = (2, 3)  # sets and shots: with 1 a size would be fixed, with 4 layers could be confused
MOST_BATCH = 63  # from 64 on diffusers' upsampling goes another way
TOLERANCE = 1e-3  # of the largest value, by which a graph may differ from torch


@dataclass(frozen=True)
class Graph:
    """A part of the pipeline, with what it is traced with.

    Attributes:
        module: takes and gives tensors by position.
        inputs: an example of each, by name.
        outputs: their names.
        free: which sizes are free: of each input, dimension -> symbol.

    """

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    free: list[dict[int, Any]]


class Encode(nn.Module):
    """Pixels [B, 3, S, S] in [-1, 1] -> scaled latents [B, 4, s, s]."""

    def __init__(self, pipeline: DiffewsPipeline) -> None:
        super().__init__()
        self.vae = pipeline.encoder or pipeline.vae

    def forward(self, pixels: Tensor) -> Tensor:
        return encode_at_once(self.vae, pixels)


class Support(nn.Module):
    """Latents of supports and their masks [B, 8, s, s] -> each layer's key and value [B, N, C]."""

    def __init__(self, pipeline: DiffewsPipeline) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.text = self.unet.encode_text(pipeline.text["eval"])

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        bank = self.unet.encode_support(latents, torch.tensor(TIMESTEP), self.text, shots=1)
        return tuple(tensor for _, key, value in bank for tensor in (key, value))


class Query(nn.Module):
    """Latents [B, 4, s, s], keys and values [B, S*N, C] of B sets -> mask latents [B, 4, s, s]."""

    def __init__(self, pipeline: DiffewsPipeline, layers: list[str]) -> None:
        super().__init__()
        self.unet, self.layers = pipeline.unet, layers
        self.text = self.unet.encode_text(pipeline.text["eval"])

    def forward(self, latents: Tensor, *tensors: Tensor) -> Tensor:
        pairs = zip(tensors[::2], tensors[1::2], strict=True)
        bank = SupportBank(1, dict(zip(self.layers, pairs, strict=True)))
        return self.unet.segment(latents, torch.tensor(TIMESTEP), self.text, bank)


class Decode(nn.Module):
    """Scaled latents [B, 4, s, s] -> RGB [B, 3, S, S] in about [-1, 1]."""

    def __init__(self, pipeline: DiffewsPipeline) -> None:
        super().__init__()
        self.vae = pipeline.decoder or pipeline.vae

    def forward(self, latents: Tensor) -> Tensor:
        return decode_at_once(self.vae, latents)


@torch.no_grad()
def export_graphs(
    source: WeightDir, out: Path, kind: str, size: int, dynamic_size: bool,
    encoder: str | None = None, decoder: str | None = None,
) -> None:
    """Writes `encoder`, `support`, `query` and `decoder`, with export.json, which explains them.

    Args:
        source: the weights, of the released variant.
        out: the folder to write, which appears when it is complete; must not exist.
        kind: "onnx" (x.onnx, which share weights.data) or "torch" (x.pt2).
        size: side in pixels; with dynamic_size that at which they are traced.
        dynamic_size: leaves the side free.
        encoder, decoder: folders of small VAEs that replace the VAE's halves.

    Raises:
        InputError: for an `out` that exists, and for graphs that do not answer as torch does.

    """
    check_new(out)
    pipeline = build_pipeline(source, torch.float32, "cpu", encoder=encoder, decoder=decoder)
    multiple = latent_factor(pipeline.vae.config.block_out_channels)
    if dynamic_size:
        multiple *= 2 ** pipeline.unet.num_upsamplers
        size = max(size // multiple, 2) * multiple

    graphs = _graphs(pipeline, size, multiple if dynamic_size else None)
    with new_folder(out) as folder:
        described, weights = {}, SharedWeights(folder / WEIGHTS)
        for name, graph in graphs.items():
            file = folder / f"{name}.{ENDINGS[kind]}"
            with refuse(f"torch's exporter fails at the graph {name}", RuntimeError, ValueError,
                        cure="other versions of torch, onnx and onnxscript may help"):
                program = _trace(graph)
                if kind == "onnx":
                    _write_onnx(program, graph, file, weights)
                else:
                    torch.export.save(program, file)
            described[name] = {
                "file": file.name, **_describe(graph, program),
                "largest_difference": _check(graph, file)}

        record: dict[str, Any] = {
            "format": kind, "version": 1, "image_size": size, "dynamic_size": dynamic_size,
            "multiple": multiple if dynamic_size else None, "dtype": "float32",
            "pixels": "RGB in [-1, 1]", "masks": "white on black, as pixels",
            "scaling_factor": pipeline.vae.config.scaling_factor,
            "scaling": "latents are scaled inside: encoder multiplies, decoder divides",
            "support": "a support's latents, then its mask's, on channels; the keys and values of "
                       "the shots of a set stand one behind the other on axis 1: tokens_4 is shots "
                       "* side * side / 4 of the latents",
            "threshold": pipeline.config.threshold, "threshold_rule": "reference",
            "foreground": "quantize decoded: ((x clipped to [-1, 1] + 1) / 2 * 255 truncated) / "
                          "255; the mean over RGB exceeds threshold * the largest value over RGB",
            "weights_sha256": pipeline.weights_sha256, **hash_weights(source),
            "graphs": described, "versions": versions()}
        record["files"] = {
            file.name: hash_files([file]) for file in sorted(folder.iterdir()) if file.is_file()}
        write_atomic(folder / EXPORT, json.dumps(record, indent=1) + "\n")


# ---- from modules to graphs ----


def _graphs(pipeline: DiffewsPipeline, size: int, multiple: int | None) -> dict[str, Graph]:
    """Returns the four parts with random examples.

    multiple: what the side in pixels is a multiple of, where it is free.
    """
    unet, (sets, shots) = pipeline.unet, TRACED
    factor = latent_factor(pipeline.vae.config.block_out_channels)
    draw, side = torch.Generator().manual_seed(0), size // factor
    channels = unet.config.in_channels
    pixels = torch.rand(sets, 3, size, size, generator=draw) * 2 - 1
    latents = torch.randn(sets, channels, side, side, generator=draw)
    pairs = torch.randn(shots, 2 * channels, side, side, generator=draw)

    # the sizes that are free: one symbol for both sides, and one for each number of tokens
    batch = Dim("batch", max=MOST_BATCH)
    of_pixels, of_latents = {0: batch}, {0: batch}
    if multiple is not None:
        step = Dim("side")
        of_pixels |= {axis: multiple * step for axis in (2, 3)}
        of_latents |= {axis: multiple // factor * step for axis in (2, 3)}

    support = Support(pipeline)
    bank = unet.encode_support(pairs, torch.tensor(TIMESTEP), support.text, shots)
    tensors = {f"{layer}.{part}": tensor.repeat(sets, 1, 1) for layer, key, value in bank
               for part, tensor in (("key", key), ("value", value))}
    counts = {tensor.shape[1] for tensor in tensors.values()}
    tokens = {count: Dim(f"tokens_{side * side * shots // count}") for count in counts}
    of_bank = [{0: batch, 1: tokens[tensor.shape[1]]} for tensor in tensors.values()]

    layers, decoded = [layer for layer, _, _ in bank], latents.clone()
    return {
        "encoder": Graph(Encode(pipeline), {"pixels": pixels}, ["latents"], [of_pixels]),
        "support": Graph(support, {"support_latents": pairs[:sets]}, list(tensors), [of_latents]),
        "query": Graph(
            Query(pipeline, layers), {"latents": latents, **tensors}, ["mask_latents"],
            [of_latents, *of_bank]),
        "decoder": Graph(Decode(pipeline), {"mask_latents": decoded}, ["decoded"], [of_latents]),
    }


def _trace(graph: Graph) -> ExportedProgram:
    # a forward that takes *tensors has their sizes in a tuple of its own
    first, *others = graph.free
    sizes = (first, tuple(others)) if others else (first,)
    return torch.export.export(
        graph.module, tuple(graph.inputs.values()), dynamic_shapes=sizes, strict=False)


def _describe(graph: Graph, program: ExportedProgram) -> dict[str, list[dict[str, Any]]]:
    """Returns names and shapes of inputs and outputs; a size that is free has a formula."""
    nodes = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    inputs = [nodes[name] for name in program.graph_signature.user_inputs]
    outputs = [nodes[name] for name in program.graph_signature.user_outputs]

    # torch numbers its symbols: ours have names
    names = {}
    for tensor, free in zip(inputs, graph.free, strict=True):
        for axis, dim in free.items():
            (symbol,) = tensor.shape[axis].node.expr.free_symbols
            names[symbol] = type(symbol)(getattr(dim, "root", dim).__name__)

    def named(labels: Any, tensors: list[Tensor]) -> list[dict[str, Any]]:
        shapes = [[size if isinstance(size, int) else str(size.node.expr.subs(names))
                   for size in tensor.shape] for tensor in tensors]
        return [{"name": n, "shape": shape} for n, shape in zip(labels, shapes, strict=True)]

    return {"inputs": named(graph.inputs, inputs), "outputs": named(graph.outputs, outputs)}


# ---- from graphs to files ----


class SharedWeights:
    """A file of tensors in which each content stands once, whichever graphs hold it.

    The support and the query pass are the same network.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[bytes, int] = {}

    def move(self, model: Any) -> None:
        """Moves the tensors of an ONNX graph (onnx_ir.Model) into the file."""
        import onnx_ir

        with self.path.open("ab") as file:
            for name, value in model.graph.initializers.items():
                tensor = value.const_value
                if tensor.nbytes <= INLINE:
                    continue
                content = tensor.tobytes()
                digest = sha256(content).digest()
                if digest not in self._places:
                    file.write(bytes(-file.tell() % ALIGNED))
                    self._places[digest] = file.tell()
                    file.write(content)
                value.const_value = onnx_ir.ExternalTensor(
                    self.path.name, self._places[digest], len(content), tensor.dtype,
                    shape=tensor.shape, name=name, base_dir=self.path.parent)


def _write_onnx(
    program: ExportedProgram, graph: Graph, file: Path, weights: SharedWeights
) -> None:
    import onnx_ir

    with _quiet():
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=list(graph.inputs),
            output_names=graph.outputs, verbose=False)
    assert converted is not None
    model = converted.model

    # the exporter notes where in our files each node comes from
    parts: list[Any] = [model, model.graph, *model.graph.all_nodes(), *model.graph.inputs]
    for part in parts:
        part.metadata_props.clear()
        for value in getattr(part, "outputs", ()):
            value.metadata_props.clear()
    weights.move(model)
    onnx_ir.save(model, file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what torch's exporter says of packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---- what was written answers as torch does ----


def _check(graph: Graph, file: Path) -> float:
    """Runs a written graph on one row of its example -> the largest difference to torch.

    In shares of the largest value.

    Raises:
        InputError: for a difference that is more than rounding.

    """
    inputs = {name: tensor[:1].contiguous() for name, tensor in graph.inputs.items()}
    wanted = graph.module(*inputs.values())
    with refuse(f"{file.name} does not run", cure="nothing is written"):
        if file.suffix == ".pt2":
            found = torch.export.load(file).module()(*inputs.values())
        else:
            from diffews.models.graphs import open_graph

            session = open_graph(file, ("CPUExecutionProvider",), torch.get_num_threads())
            arrays = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            found = tuple(map(torch.from_numpy, arrays))

    pairs = zip(_tuple(wanted), _tuple(found), strict=True)
    worst = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in pairs)
    if not worst < TOLERANCE:
        raise InputError(f"{file.name}: its answer differs from torch's by {worst:.2g} of the "
                         "largest value; other versions of torch, onnx or onnxruntime may help")
    return worst


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
