"""Operators that an ONNX graph of a bundle may have: an export writes no other, a run opens none.

Left out are those that run other graphs (`Loop`, `If`, `Scan`), whose results have sizes that
depend on data, draw numbers, or read files.
"""

from __future__ import annotations

_ONNX = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv
    ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Elu
    Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul MatMulInteger Max MaxPool
    Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign
    SimplifiedLayerNormalization Sin SkipLayerNormalization Slice Softmax Softplus SpaceToDepth
    Split Sqrt Squeeze Sub Sum Swish Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
_MICROSOFT = """
    Attention BiasGelu DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul Gelu
    GroupQueryAttention MatMulIntegerToFloat MatMulNBits MultiHeadAttention QAttention QGemm
    QLinearAdd QLinearMul QLinearSigmoid QLinearSoftmax QuickGelu RotaryEmbedding
    SkipLayerNormalization SkipSimplifiedLayerNormalization
"""
OPERATORS = {
    "": frozenset(_ONNX.split()),
    "ai.onnx": frozenset(_ONNX.split()),
    "com.microsoft": frozenset(_MICROSOFT.split()),
}
MOST_NODES = 2**17


def known(domain: str, operator: str) -> bool:
    """Whether a graph may have an operator of a domain."""
    return operator in OPERATORS.get(domain, frozenset())
