--- Generates the source of a kernel, in C and in CUDA C, from the statements and operands of a program.
--
-- A program is { statements, numbers = names of numbers, operands = { { name, dtype, out = true or nil, kind } ... },
-- wide = whether it computes in double }. An operand's kind maps element i of the result to the operand's element:
-- 'full' to i; 'one' to 0; 'part' to (i / inner) % count, with inner and count given at the call.

local formula = require 'cr.kernel.formula'

local M = {}

local C_TYPES = {
  f32 = 'float', f64 = 'double', u8 = 'unsigned char', i8 = 'signed char', i16 = 'short', i32 = 'int', i64 = 'long long',
  bool = 'unsigned char', f16 = 'half16', bf16 = 'brain16',
}
local SIZES = { f32 = 4, f64 = 8, u8 = 1, i8 = 1, i16 = 2, i32 = 4, i64 = 8, bool = 1, f16 = 2, bf16 = 2 }

local function text_of(node)
  if node.op == 'number' then
    if node.value ~= node.value then return '((R)(0.0 / 0.0))' end
    if math.abs(node.value) == math.huge then return node.value > 0 and '((R)INFINITY)' or '((R)-INFINITY)' end
    return ('((R)%.17g)'):format(node.value)
  end
  if node.op == 'name' then return 'v_' .. node.name end
  local parts = {}
  for i, child in ipairs(node) do parts[i] = text_of(child) end
  return (formula.FUNCTIONS[node.op][2]:format(unpack(parts)))
end

-- The part that both languages share. Half floats are stored as bits; each language converts them in its own way.
local SHARED = [[
DEVICE R larger(R a, R b) { return a > b || a != a ? a : b; }
DEVICE R smaller(R a, R b) { return a < b || a != a ? a : b; }
DEVICE R sign_of(R x) { return x > 0 ? (R)1 : x < 0 ? (R)-1 : x; }
DEVICE R square_of(R x) { return x * x; }
DEVICE R silu_of(R x) { return x / (1 + F(exp)(-x)); }
DEVICE R gelu_of(R x) { return (R)0.5 * x * F(erfc)(x * (R)-0.70710678118654752); }
DEVICE R remainder_of(R a, R b) { R r = F(fmod)(a, b); return r != 0 && (r < 0) != (b < 0) ? r + b : r; }
DEVICE brain16 to_brain(float x) {
  union { float f; unsigned u; } b; b.f = x; brain16 r;
  r.bits = x != x ? 0x7fc0 : (unsigned short)((b.u + 0x7fff + (b.u >> 16 & 1)) >> 16);
  return r;
}
DEVICE float from_brain(brain16 x) { union { float f; unsigned u; } b; b.u = (unsigned)x.bits << 16; return b.f; }
]]

local FOR_C = [[
#include <math.h>
#define DEVICE static inline
typedef struct { unsigned short bits; } brain16;
typedef _Float16 half16;
]]
local FOR_CUDA = [[
#define DEVICE __device__ __forceinline__
#define INFINITY __int_as_float(0x7f800000)
struct brain16 { unsigned short bits; };
struct half16 { unsigned short bits; };
DEVICE float from_half(half16 x) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits)); return f; }
DEVICE half16 to_half(float x) { half16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x)); return h; }
]]

local function loaded(operand, place, cuda)
  local element = ('p_%s%s'):format(operand.name, place)
  if operand.dtype == 'bf16' then return ('(R)from_brain(%s)'):format(element) end
  if operand.dtype == 'f16' and cuda then return ('(R)from_half(%s)'):format(element) end
  return ('(R)%s'):format(element)
end

-- Converts a value to an operand's dtype. As everywhere, integers saturate and nan becomes 0.
local LIMITS = { u8 = { 0, 255 }, i8 = { -128, 127 }, i16 = { -32768, 32767 }, i32 = { -2147483648, 2147483647 },
  i64 = { -9223372036854775808, 9223372036854774784 } }
local function stored(operand, value, cuda)
  local dtype = operand.dtype
  if dtype == 'bf16' then return ('to_brain((float)(%s))'):format(value) end
  if dtype == 'f16' then return (cuda and 'to_half((float)(%s))' or '(half16)(%s)'):format(value) end
  if dtype == 'bool' then return ('(unsigned char)(%s != 0)'):format(value) end
  local limit = LIMITS[dtype]
  if not limit then return ('(%s)(%s)'):format(C_TYPES[dtype], value) end
  return ('(%s == %s ? (%s)smaller(larger(%s, (R)%.17g), (R)%.17g) : 0)'):format(value, value, C_TYPES[dtype], value, limit[1], limit[2])
end

local function head(program, cuda)
  return (cuda and FOR_CUDA or FOR_C) .. ('typedef %s R;\n#define F(NAME) %s\n'):format(program.wide and 'double' or 'float',
    program.wide and 'NAME' or 'NAME##f') .. SHARED
end

-- Writes the statements that compute the values v_NAME, except reductions.
local function body(program, lines, indent)
  for _, s in ipairs(program.statements) do
    lines[#lines + 1] = ('%sR %s_%s = %s;'):format(indent, s.how and 'r' or 'v', s.name, text_of(s.node))
  end
end

local function names_of(program, out)
  local list = {}
  for _, o in ipairs(program.operands) do
    if (o.out or false) == out then list[#list + 1] = o end
  end
  return list
end

-- The initial value of a reduction, and how it combines two values. A nan propagates.
local BEGIN = { max = '-INFINITY', min = 'INFINITY' }
local function joined(how, a, b)
  local sign = how == 'max' and '>' or how == 'min' and '<'
  return sign and ('(%s %s %s || %s != %s ? %s : %s)'):format(b, sign, a, b, b, b, a) or ('%s + %s'):format(a, b)
end

local function each_reduced(program, fn)
  for _, s in ipairs(program.statements) do
    if s.how then fn(s.name, s.how) end
  end
end

-- ---- C ------------------------------------------------------------------------------------------------------

local function c_pointers(program, lines)
  for i, o in ipairs(program.operands) do
    lines[#lines + 1] = ('  %s%s *restrict b_%s = p[%d];'):format(o.out and '' or 'const ', C_TYPES[o.dtype], o.name, i - 1)
  end
  for i, name in ipairs(program.numbers) do lines[#lines + 1] = ('  const R v_%s = (R)s[%d];'):format(name, i - 1) end
end

--- C source of `void crescent_kernel(long long n, long long length, const long long *parts, void *const *p, const
--- double *s)`: n is the number of elements, in rows of `length` for a reduction; parts holds inner and count of each
--- operand; p holds their memory.
--- @param program table
--- @return string
function M.c(program)
  local lines = { head(program, false) }
  local function put(...) lines[#lines + 1] = (...):format(select(2, ...)) end
  put 'void crescent_kernel(long long n, long long length, const long long *parts, void *const *p, const double *s) {'
  c_pointers(program, lines)
  -- Segments of `length` elements, in which every operand is either contiguous or a single value.
  put '  long long segments = (n + length - 1) / length;\n  (void)parts; (void)s;\n#pragma omp parallel for schedule(static) if (n > 8192)'
  put '  for (long long g = 0; g < segments; g++) {\n    long long first = g * length, count = n - first < length ? n - first : length;'
  for i, o in ipairs(program.operands) do
    if not (o.out and program.reduces) then
      local at = o.kind == 'full' and 'first' or o.kind == 'one' and '0' or
        ('(first / parts[%d]) %% parts[%d]'):format(2 * i - 2, 2 * i - 1)
      put('    %s%s *restrict p_%s = b_%s + %s;', o.out and '' or 'const ', C_TYPES[o.dtype], o.name, o.name, at)
      if o.kind == 'one' then put('    const R v_%s = %s;', o.name, loaded(o, '[0]', false)) end
      if o.kind == 'part' then put('    const long long step_%s = parts[%d] == 1 ? 1 : 0;', o.name, 2 * i - 2) end
    end
  end
  each_reduced(program, function(name, how) put('    double a_%s = %s;', name, BEGIN[how] or '0') end)
  put '    for (long long i = 0; i < count; i++) {'
  for _, o in ipairs(names_of(program, false)) do
    local place = o.kind == 'full' and '[i]' or '[i * step_' .. o.name .. ']'
    if o.kind ~= 'one' then put('      const R v_%s = %s;', o.name, loaded(o, place, false)) end
  end
  body(program, lines, '      ')
  each_reduced(program, function(name, how) put('      a_%s = %s;', name, joined(how, 'a_' .. name, 'r_' .. name)) end)
  if not program.reduces then
    for _, o in ipairs(names_of(program, true)) do put('      p_%s[i] = %s;', o.name, stored(o, 'v_' .. o.name, false)) end
  end
  put '    }'
  if program.reduces then
    each_reduced(program, function(name, how)
      put('    const R v_%s = (R)(a_%s%s);', name, name, how == 'mean' and ' / (double)count' or '')
    end)
    for _, o in ipairs(names_of(program, true)) do put('    b_%s[g] = %s;', o.name, stored(o, 'v_' .. o.name, false)) end
  end
  put '  }\n}'
  return table.concat(lines, '\n') .. '\n'
end

-- ---- CUDA ---------------------------------------------------------------------------------------------------

--- Returns how many elements a thread may load at once: 16 bytes of the widest operand.
--- @param program table
--- @return integer
function M.width(program)
  local widest = 1
  for _, o in ipairs(program.operands) do widest = math.max(widest, SIZES[o.dtype]) end
  return math.max(1, 16 / widest)
end

local function cuda_arguments(program, put)
  local list = {}
  for _, o in ipairs(program.operands) do
    list[#list + 1] = ('%s%s *__restrict__ b_%s'):format(o.out and '' or 'const ', C_TYPES[o.dtype], o.name)
    if o.kind == 'part' then list[#list + 1] = ('long long inner_%s, long long count_%s'):format(o.name, o.name) end
  end
  for _, name in ipairs(program.numbers) do list[#list + 1] = 'double s_' .. name end
  put('extern "C" __global__ void __launch_bounds__(256) kernel(long long n, long long length%s%s) {', #list > 0 and ', ' or '',
    table.concat(list, ', '))
  for _, name in ipairs(program.numbers) do put('  const R v_%s = (R)s_%s;', name, name) end
end

local function cuda_elements(program, width, put, lines)
  put('  for (long long g = blockIdx.x * 256ll + threadIdx.x; g < n / %d; g += gridDim.x * 256ll) {', width)
  put('    long long first = g * %d;', width)
  for _, o in ipairs(names_of(program, false)) do
    local at = o.kind == 'full' and 'first' or o.kind == 'one' and '0' or
      ('(first / inner_%s) %% count_%s'):format(o.name, o.name)
    if o.kind == 'full' or o.run then
      put('    const V<%s> p_%s = *(const V<%s> *)(b_%s + %s);', C_TYPES[o.dtype], o.name, C_TYPES[o.dtype], o.name, at)
    else
      put('    const %s p_%s = b_%s[%s];', C_TYPES[o.dtype], o.name, o.name, at)
    end
  end
  for _, o in ipairs(names_of(program, true)) do put('    V<%s> q_%s;', C_TYPES[o.dtype], o.name) end
  put('#pragma unroll\n    for (int i = 0; i < %d; i++) {', width)
  for _, o in ipairs(names_of(program, false)) do
    put('      const R v_%s = %s;', o.name, loaded(o, (o.kind == 'full' or o.run) and '.v[i]' or '', true))
  end
  body(program, lines, '      ')
  for _, o in ipairs(names_of(program, true)) do put('      q_%s.v[i] = %s;', o.name, stored(o, 'v_' .. o.name, true)) end
  put '    }'
  for _, o in ipairs(names_of(program, true)) do put('    *(V<%s> *)(b_%s + first) = q_%s;', C_TYPES[o.dtype], o.name, o.name) end
  put '  }\n}'
end

-- One block reduces one row. Partial results are combined in shared memory in a fixed order.
local function cuda_rows(program, put, lines)
  put '  __shared__ R part[256];\n  long long row = blockIdx.x, first = row * length;'
  each_reduced(program, function(name, how) put('  R a_%s = %s;', name, BEGIN[how] or '0') end)
  put '  for (long long j = threadIdx.x; j < length; j += 256) {\n    long long at = first + j;'
  for _, o in ipairs(names_of(program, false)) do
    local at = o.kind == 'full' and 'at' or o.kind == 'one' and '0' or ('(at / inner_%s) %% count_%s'):format(o.name, o.name)
    put('    const R v_%s = %s;', o.name, (loaded(o, '[' .. at .. ']', true):gsub('p_' .. o.name, 'b_' .. o.name)))
  end
  body(program, lines, '    ')
  each_reduced(program, function(name, how) put('    a_%s = %s;', name, joined(how, 'a_' .. name, 'r_' .. name)) end)
  put '  }'
  each_reduced(program, function(name, how)
    put('  part[threadIdx.x] = a_%s;\n  __syncthreads();', name)
    put '  for (int half = 128; half > 0; half /= 2) {'
    put('    if (threadIdx.x < half) part[threadIdx.x] = %s;', joined(how, 'part[threadIdx.x]', 'part[threadIdx.x + half]'))
    put('    __syncthreads();\n  }\n  const R v_%s = part[0]%s;\n  __syncthreads();', name, how == 'mean' and ' / (R)length' or '')
  end)
  put '  if (threadIdx.x == 0) {'
  for _, o in ipairs(names_of(program, true)) do put('    b_%s[row] = %s;', o.name, stored(o, 'v_' .. o.name, true)) end
  put '  }\n}'
end

--- CUDA source of a kernel with the same meaning. Its arguments are n, length, then for each operand its memory and,
--- for a 'part', inner and count, then the numbers as double. A 'part' with `run` has inner = 1, so `width` elements
--- are contiguous.
--- @param program table
--- @param width integer elements that a thread loads at once
--- @return string
function M.cuda(program, width)
  local lines = { head(program, true) }
  local function put(...) lines[#lines + 1] = (...):format(select(2, ...)) end
  put('template <typename T> struct __align__(sizeof(T) * %d) V { T v[%d]; };', width, width)
  cuda_arguments(program, put)
  if program.reduces then cuda_rows(program, put, lines) else cuda_elements(program, width, put, lines) end
  return table.concat(lines, '\n') .. '\n'
end

return M
