"""The depthwise causal convolution by its C++ kernel: one pass over memory each way.

Letters: B sequences, T tokens, S inputs (J - 1 more than tokens), J taps, D width.
"""

from torch import Tensor

from hope_model.ops.native.function import Kernel

KERNEL = Kernel(
    "convolution", sizes="N T D J", inputs="x[N,T+J-1,D] weight[1,J,D]", outputs="y[N,T,D]", shared="weight"
)


def convolution_applies(x_BSD: Tensor, weight_JD: Tensor) -> bool:
    """Whether the kernel is there and takes these."""
    return KERNEL.applies(x_BSD, weight_JD) and len(weight_JD) <= KERNEL.compiled().number("convolution_taps")


def convolution(x_BSD: Tensor, weight_JD: Tensor) -> Tensor:
    """y_t = sum over j of weight_j x_{t+j}, for every column."""
    (B, S, D), J = x_BSD.shape, len(weight_JD)
    return KERNEL({"N": B, "T": S - J + 1, "D": D, "J": J}, x=x_BSD, weight=weight_JD[None])[0]
