"""The depthwise causal convolution by its C++ kernel: one pass over memory each way.

Letters: B sequences, T tokens, J taps, D width.
"""

from torch import Tensor

from hope_model.ops.native.function import Kernel

KERNEL = Kernel(
    "convolution",
    sizes="N T D J",
    inputs="x[N,T,D]~ tail[N,J-1,D]~ weight[1,J,D]",
    outputs="y[N,T,D]~ after[N,J-1,D]~",
    shared="weight",
)


def convolution_applies(x_BTD: Tensor, tail: Tensor, weight_JD: Tensor) -> bool:
    """Whether the kernel is there and takes these."""
    return KERNEL.applies(x_BTD, tail, weight_JD) and len(weight_JD) <= KERNEL.compiled().number(
        "convolution_taps"
    )


def convolution(x_BTD: Tensor, tail: Tensor, weight_JD: Tensor) -> tuple[Tensor, Tensor]:
    """y_t = sum over j of weight_j x_{t-J+1+j}, for every column; and the last J - 1 inputs."""
    (B, T, D), J = x_BTD.shape, len(weight_JD)
    y, after = KERNEL({"N": B, "T": T, "D": D, "J": J}, x=x_BTD, tail=tail, weight=weight_JD[None])
    return y, after
