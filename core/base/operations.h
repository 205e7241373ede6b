/* The tables of operations, with a ROW for each enumerator of crescent.h in its order. Everything
 * that depends on the list of operations (names in C and in Lua, the CPU's loops, the GPU's
 * kernels, the tests) is generated from them. names.c does not compile if a table and its enum
 * differ.
 *
 * A new elementwise operation needs its enumerator in crescent.h, whose comment is its help; its
 * row here; and its formula in arithmetic.h (a float form that is specific to a device goes to
 * vmath.h and unary.cu). */
#ifndef CR_OPERATIONS_H
#define CR_OPERATIONS_H

#include "crescent.h"

/* ROW(enumerator, name, kinds). The name is the method's name and part of the formula's. `kinds`
 * are the dtypes that the operation computes in: FLOATS (other dtypes become f32), NUMBERS (floats
 * and integers) or BOOL (the only dtype that the operation then accepts). */
#define CR_UNARY_TABLE(ROW)                                                                        \
  ROW(CR_NEG, neg, NUMBERS)                                                                        \
  ROW(CR_ABS, abs, NUMBERS)                                                                        \
  ROW(CR_SIGN, sign, NUMBERS)                                                                      \
  ROW(CR_EXP, exp, FLOATS)                                                                         \
  ROW(CR_LOG, log, FLOATS)                                                                         \
  ROW(CR_LOG10, log10, FLOATS)                                                                     \
  ROW(CR_LOG2, log2, FLOATS)                                                                       \
  ROW(CR_LOG1P, log1p, FLOATS)                                                                     \
  ROW(CR_EXPM1, expm1, FLOATS)                                                                     \
  ROW(CR_SQRT, sqrt, FLOATS)                                                                       \
  ROW(CR_RSQRT, rsqrt, FLOATS)                                                                     \
  ROW(CR_SIN, sin, FLOATS)                                                                         \
  ROW(CR_COS, cos, FLOATS)                                                                         \
  ROW(CR_TANH, tanh, FLOATS)                                                                       \
  ROW(CR_ERF, erf, FLOATS)                                                                         \
  ROW(CR_SIGMOID, sigmoid, FLOATS)                                                                 \
  ROW(CR_SILU, silu, FLOATS)                                                                       \
  ROW(CR_GELU, gelu, FLOATS)                                                                       \
  ROW(CR_RELU, relu, NUMBERS)                                                                      \
  ROW(CR_FLOOR, floor, NUMBERS)                                                                    \
  ROW(CR_CEIL, ceil, NUMBERS)                                                                      \
  ROW(CR_TRUNC, trunc, NUMBERS)                                                                    \
  ROW(CR_ROUND, round, NUMBERS)                                                                    \
  ROW(CR_SQUARE, square, NUMBERS)                                                                  \
  ROW(CR_RECIPROCAL, reciprocal, FLOATS)                                                           \
  ROW(CR_NOT, logical_not, BOOL)

/* ROW(enumerator, name, kinds, result). All operations accept every dtype; with FLOATS, integers
 * are computed in float. The result has the operands' dtype (SAME) or bool (BOOLEAN). */
#define CR_BINARY_TABLE(ROW)                                                                       \
  ROW(CR_ADD, add, NUMBERS, SAME)                                                                  \
  ROW(CR_SUB, sub, NUMBERS, SAME)                                                                  \
  ROW(CR_MUL, mul, NUMBERS, SAME)                                                                  \
  ROW(CR_DIV, div, FLOATS, SAME)                                                                   \
  ROW(CR_POW, pow, NUMBERS, SAME)                                                                  \
  ROW(CR_MAX, maximum, NUMBERS, SAME)                                                              \
  ROW(CR_MIN, minimum, NUMBERS, SAME)                                                              \
  ROW(CR_REMAINDER, remainder, NUMBERS, SAME)                                                      \
  ROW(CR_FMOD, fmod, NUMBERS, SAME)                                                                \
  ROW(CR_ATAN2, atan2, FLOATS, SAME)                                                               \
  ROW(CR_EQ, eq, NUMBERS, BOOLEAN)                                                                 \
  ROW(CR_NE, ne, NUMBERS, BOOLEAN)                                                                 \
  ROW(CR_LT, lt, NUMBERS, BOOLEAN)                                                                 \
  ROW(CR_LE, le, NUMBERS, BOOLEAN)                                                                 \
  ROW(CR_GT, gt, NUMBERS, BOOLEAN)                                                                 \
  ROW(CR_GE, ge, NUMBERS, BOOLEAN)

/* ROW(enumerator, name, result). The result has the element's dtype (ELEMENT), is an i64 index
 * (INDEX), or has a float's own dtype, while integers give i64 (INTEGER) or f32 (FLOAT). */
#define CR_REDUCE_TABLE(ROW)                                                                       \
  ROW(CR_SUM, sum, INTEGER)                                                                        \
  ROW(CR_MEAN, mean, FLOAT)                                                                        \
  ROW(CR_AMAX, max, ELEMENT)                                                                       \
  ROW(CR_AMIN, min, ELEMENT)                                                                       \
  ROW(CR_ARGMAX, argmax, INDEX)                                                                    \
  ROW(CR_ARGMIN, argmin, INDEX)                                                                    \
  ROW(CR_VAR, var, FLOAT)

/* ROW(enumerator, name): the activations. Their formulas are in activation.h; NONE has no
 * formula. */
#define CR_ACT_TABLE(ROW) ROW(CR_ACT_NONE, none) CR_ACT_FORMULAS(ROW)
#define CR_ACT_FORMULAS(ROW)                                                                       \
  ROW(CR_ACT_SILU, silu)                                                                           \
  ROW(CR_ACT_GELU, gelu)                                                                           \
  ROW(CR_ACT_RELU, relu)                                                                           \
  ROW(CR_ACT_PRELU, prelu)                                                                         \
  ROW(CR_ACT_RELU6, relu6)

/* ROW(enumerator, name): the methods of resizing an image. */
#define CR_RESIZE_TABLE(ROW)                                                                       \
  ROW(CR_NEAREST, nearest)                                                                         \
  ROW(CR_BILINEAR, bilinear)                                                                       \
  ROW(CR_LINEAR, linear)                                                                           \
  ROW(CR_BILINEAR_EDGE, bilinear_edge)                                                             \
  ROW(CR_BICUBIC_AA, bicubic_aa)                                                                   \
  ROW(CR_LANCZOS4, lanczos4)

/* ROW(enumerator, name): the kinds of random number generators, with their names as strings. */
#define CR_RNG_TABLE(ROW)                                                                          \
  ROW(CR_RNG_TORCH_CPU, "torch-cpu")                                                               \
  ROW(CR_RNG_TORCH_CUDA, "torch-cuda")                                                             \
  ROW(CR_RNG_PHILOX, "philox")

/* ROW(enumerator, name, bytes of an element): the dtypes. */
#define CR_DTYPE_TABLE(ROW)                                                                        \
  ROW(CR_F32, f32, 4)                                                                              \
  ROW(CR_F16, f16, 2)                                                                              \
  ROW(CR_BF16, bf16, 2)                                                                            \
  ROW(CR_F64, f64, 8)                                                                              \
  ROW(CR_U8, u8, 1)                                                                                \
  ROW(CR_I8, i8, 1)                                                                                \
  ROW(CR_I16, i16, 2)                                                                              \
  ROW(CR_I32, i32, 4)                                                                              \
  ROW(CR_I64, i64, 8)                                                                              \
  ROW(CR_BOOL, bool, 1)

/* ---- sets and forms that follow from the kinds ---- */

/* CR_FLOAT_FORM(kinds, MACRO, arguments) is MACRO(arguments) if operations of these kinds are
 * computed in float and double, else nothing. CR_INTEGER_FORM does the same for int64. */
#define CR_FLOAT_FORM(KINDS, MACRO, ...) CR__FLOAT_FORM_##KINDS(MACRO, __VA_ARGS__)
#define CR__FLOAT_FORM_FLOATS(MACRO, ...) MACRO(__VA_ARGS__)
#define CR__FLOAT_FORM_NUMBERS(MACRO, ...) MACRO(__VA_ARGS__)
#define CR__FLOAT_FORM_BOOL(MACRO, ...)
#define CR_INTEGER_FORM(KINDS, MACRO, ...) CR__INTEGER_FORM_##KINDS(MACRO, __VA_ARGS__)
#define CR__INTEGER_FORM_FLOATS(MACRO, ...)
#define CR__INTEGER_FORM_NUMBERS(MACRO, ...) MACRO(__VA_ARGS__)
#define CR__INTEGER_FORM_BOOL(MACRO, ...) MACRO(__VA_ARGS__)

/* Whether an operation is in a set. Sets are constants with a bit for each operation. */
#define CR__IN(SET, OP) (((SET) >> (OP)&1) != 0)
#define CR__BIT(OP) | UINT64_C(1) << (OP)

#define CR__IF_FLOAT(OP, NAME, KINDS) CR_FLOAT_FORM(KINDS, CR__BIT, OP)
#define CR__IF_INTEGER(OP, NAME, KINDS) CR_INTEGER_FORM(KINDS, CR__BIT, OP)
#define CR__UNARY_OF_FLOATS (UINT64_C(0) CR_UNARY_TABLE(CR__IF_FLOAT))
/* Operations on integers, and those on bool that have no float form. */
#define CR__UNARY_OF_INTEGERS (UINT64_C(0) CR_UNARY_TABLE(CR__IF_INTEGER))

#define CR__IF_INTEGER_PAIR(OP, NAME, KINDS, RESULT) CR_INTEGER_FORM(KINDS, CR__BIT, OP)
#define CR__BINARY_OF_INTEGERS (UINT64_C(0) CR_BINARY_TABLE(CR__IF_INTEGER_PAIR))

#define CR__IF_SAME(OP)
#define CR__IF_BOOLEAN(OP) CR__BIT(OP)
#define CR__IF_COMPARES(OP, NAME, KINDS, RESULT) CR__IF_##RESULT(OP)
#define CR__COMPARISONS (UINT64_C(0) CR_BINARY_TABLE(CR__IF_COMPARES))

#endif
