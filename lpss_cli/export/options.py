"""Options of an export. This module does not import PyTorch, so that help is instant."""

from __future__ import annotations

from dataclasses import dataclass, field

from lpss_cli.utils import options as declarations
from lpss_cli.utils.options import comma_separated, option

#: The formats that a checkpoint can be exported to.
FORMATS = ("safetensors", "onnx", "pack")
#: How an ONNX file stores weights: all of them, or the gaps between nonzero ones.
ENCODINGS = ("dense", "gaps")


@dataclass(frozen=True)
class OnnxOptions:
    """How a network is written as ONNX.

    Attributes:
        compact: first remove units that have no input or that nothing reads.
        encoding: one of ``ENCODINGS``.
        int8: write a quantized file too.
        latency: measure the latency of every file.
    """

    compact: bool = option(
        True, "remove units without input or use from the ONNX file, without changing its outputs"
    )
    encoding: str = option(
        "dense",
        "how the ONNX file stores the weights; gaps leaves the zeros out, and the runtime unfolds "
        "the weights when it loads them",
        choices=ENCODINGS,
        key="onnx_encoding",
    )
    int8: bool = option(False, "also write and measure a quantized ONNX file")
    latency: bool = option(True, "measure the time of a batch in onnxruntime")

    def check(self) -> None:
        """Check the encoding.

        Raises:
            InputError: it is not a choice.
        """
        declarations.check(self)


@dataclass(frozen=True)
class ExportOptions:
    """Which files are written, and how.

    Attributes:
        formats: some of ``FORMATS``.
        values: type of the packed values, one of ``packed.CHOICES``.
        onnx: how the ONNX file is made, and which files beside it.
        clean: first zero weights and biases that reach no output, in all files.
    """

    formats: tuple[str, ...] = option(
        FORMATS,
        "files to write, separated by commas",
        choices=FORMATS,
        key="format",
        several=True,
        parse=comma_separated,
    )
    values: str = option(
        "fp16",
        "type of the kept weights in the packed file",
        choices=("fp32", "fp16", "bf16", "int8"),
    )
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    clean: bool = option(False, "zero weights and biases that reach no output first, in all files")

    def check(self) -> None:
        """Check the formats, the type of the values and the encoding.

        Raises:
            InputError: one of them is not a choice.
        """
        declarations.check(self)
        self.onnx.check()
