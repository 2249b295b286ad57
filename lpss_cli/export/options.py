"""Options of an export, declared once; without PyTorch, so that help is instant."""

from __future__ import annotations

from dataclasses import dataclass, field

from lpss_cli.utils import options as declarations
from lpss_cli.utils.options import comma_separated, option

#: Files that can be written.
FORMATS = ("safetensors", "onnx", "pack")
#: Ways to store the weights in an ONNX file.
ENCODINGS = ("dense", "gaps")


@dataclass(frozen=True)
class OnnxOptions:
    """How a network is written as ONNX.

    Attributes:
        compact: Remove units without input or use first.
        encoding: One of ``ENCODINGS``.
        int8: Also write a quantized file.
        latency: Measure the latency of every file.
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
            InputError: It is not a choice.
        """
        declarations.check(self)


@dataclass(frozen=True)
class ExportOptions:
    """Which files are written, and how.

    Attributes:
        formats: Some of ``FORMATS``.
        values: Type of the packed values, one of ``packed.CHOICES``.
        onnx: How the ONNX file is made, and which files beside it.
        clean: Zero what reaches no output first, in all files.
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
            InputError: One of them is not a choice.
        """
        declarations.check(self)
        self.onnx.check()
