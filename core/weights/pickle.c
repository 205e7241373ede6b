/* The pickle machine's opcodes, protocols 0 to 5 as far as data needs them. Python's
 * Lib/pickletools.py is the description of each opcode. */
#include "weights/pickle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/internal.h"

enum { MAX_NUMBER_TEXT = 64 };

typedef struct machine {
  cr__pickle *pickle;
  cr__arena *arena;
  const uint8_t *start, *p, *end;
  cr__value **stack;
  int64_t depth, stack_capacity;
  cr__value **memo;
  int64_t memo_size, memo_count;
} machine;

static int damaged(const machine *m, const char *what) {
  cr__fail(CR_EFORMAT, "%s: damaged pickle: %s at byte %lld", m->pickle->path, what,
           (long long)(m->p - m->start));
  return CR_EFORMAT;
}

static int no_memory(const machine *m) {
  cr__fail(CR_ENOMEM, "%s: out of memory for the pickle", m->pickle->path);
  return CR_ENOMEM;
}

cr__value *cr__value_new(cr__arena *arena, enum cr__value_kind kind) {
  cr__value *value = cr__arena_alloc(arena, sizeof *value);
  if (value) value->kind = kind;
  return value;
}

bool cr__value_push(cr__arena *arena, cr__value *list, cr__value *item) {
  if (list->count == list->capacity) {
    int64_t capacity = list->capacity ? list->capacity * 2 : 4;
    cr__value **items = cr__arena_alloc(arena, (size_t)capacity * sizeof(void *));
    if (!items) return false;
    if (list->count) memcpy(items, list->items, (size_t)list->count * sizeof(void *));
    list->items = items;
    list->capacity = capacity;
  }
  list->items[list->count++] = item;
  return true;
}

static int push(machine *m, cr__value *value) {
  if (!value) return no_memory(m);
  if (m->depth == m->stack_capacity) {
    int64_t capacity = m->stack_capacity ? m->stack_capacity * 2 : 256;
    cr__value **stack = realloc(m->stack, (size_t)capacity * sizeof(void *));
    if (!stack) return no_memory(m);
    m->stack = stack;
    m->stack_capacity = capacity;
  }
  m->stack[m->depth++] = value;
  return CR_OK;
}

static int push_new(machine *m, enum cr__value_kind kind, int64_t integer) {
  cr__value *value = cr__value_new(m->arena, kind);
  if (value) value->integer = integer;
  return push(m, value);
}

static int push_real(machine *m, double real) {
  cr__value *value = cr__value_new(m->arena, CR__REAL);
  if (value) value->real = real;
  return push(m, value);
}

/* A list, tuple or dictionary without items. */
static int push_empty(machine *m, enum cr__value_kind kind) {
  return push(m, cr__value_new(m->arena, kind));
}

static int push_text(machine *m, const char *text, size_t bytes) {
  cr__value *value = cr__value_new(m->arena, CR__STRING);
  if (value) {
    value->text = text;
    value->bytes = bytes;
  }
  return push(m, value);
}

/* The top value; marks do not count as values. */
static int pop(machine *m, cr__value **out) {
  if (m->depth == 0 || m->stack[m->depth - 1]->kind == CR__MARK)
    return damaged(m, "a value is missing");
  *out = m->stack[--m->depth];
  return CR_OK;
}

static int top(const machine *m, cr__value **out) {
  if (m->depth == 0 || m->stack[m->depth - 1]->kind == CR__MARK)
    return damaged(m, "a value is missing");
  *out = m->stack[m->depth - 1];
  return CR_OK;
}

/* Index of the first value above the last mark. */
static int find_mark(const machine *m, int64_t *first) {
  int64_t i = m->depth;
  while (i > 0 && m->stack[i - 1]->kind != CR__MARK) i--;
  if (i == 0) return damaged(m, "a mark is missing");
  *first = i;
  return CR_OK;
}

/* Moves the values from `first` on to `list`; the mark below them goes too. */
static int collect(machine *m, cr__value *list, int64_t first) {
  for (int64_t i = first; i < m->depth; i++)
    if (!cr__value_push(m->arena, list, m->stack[i])) return no_memory(m);
  m->depth = first - 1;
  return CR_OK;
}

static int take(machine *m, uint64_t bytes, const uint8_t **out) {
  if (bytes > (uint64_t)(m->end - m->p)) return damaged(m, "it is cut off");
  *out = m->p;
  m->p += bytes;
  return CR_OK;
}

/* A little-endian number of `width` bytes. */
static int take_number(machine *m, int width, uint64_t *out) {
  const uint8_t *p = NULL;
  CR_TRY(take(m, (uint64_t)width, &p));
  *out = 0;
  for (int i = 0; i < width; i++) *out |= (uint64_t)p[i] << 8 * i;
  return CR_OK;
}

/* Up to the next newline. */
static int take_line(machine *m, const char **text, size_t *bytes) {
  const uint8_t *close = memchr(m->p, '\n', (size_t)(m->end - m->p));
  if (!close) return damaged(m, "a line is not closed");
  *text = (const char *)m->p;
  *bytes = (size_t)(close - m->p);
  m->p = close + 1;
  return CR_OK;
}

static int take_text(machine *m, int width) {
  uint64_t bytes = 0;
  const uint8_t *text = NULL;
  CR_TRY(take_number(m, width, &bytes));
  CR_TRY(take(m, bytes, &text));
  return push_text(m, (const char *)text, bytes);
}

/* Two's complement of any length; what no int64 holds becomes a float. */
static int take_long(machine *m, int width) {
  uint64_t bytes = 0;
  const uint8_t *p = NULL;
  CR_TRY(take_number(m, width, &bytes));
  CR_TRY(take(m, bytes, &p));
  if (bytes <= 8) {
    uint64_t value = bytes && p[bytes - 1] & 0x80 ? UINT64_MAX : 0;
    for (uint64_t i = bytes; i-- > 0;) value = value << 8 | p[i];
    return push_new(m, CR__INTEGER, (int64_t)value);
  }
  double value = p[bytes - 1] & 0x80 ? -1 : 0;
  for (uint64_t i = bytes; i-- > 0 && isfinite(value);) value = value * 256 + p[i];
  return push_real(m, value);
}

/* Protocol 0's numbers are lines of text: I (with 00 and 01 for booleans), L, F. */
static int take_text_number(machine *m, int opcode) {
  const char *line = NULL;
  size_t bytes = 0;
  CR_TRY(take_line(m, &line, &bytes));
  if (opcode == 'I' && bytes == 2 && line[0] == '0' && (line[1] == '0' || line[1] == '1'))
    return push_new(m, CR__FLAG, line[1] - '0');
  char text[MAX_NUMBER_TEXT], *stop;
  if (bytes && line[bytes - 1] == 'L' && opcode == 'L') bytes--;
  if (bytes == 0 || bytes >= sizeof text) return damaged(m, "a bad number");
  memcpy(text, line, bytes);
  text[bytes] = 0;
  if (opcode == 'F') {
    double real = strtod(text, &stop);
    return *stop ? damaged(m, "a bad number") : push_real(m, real);
  }
  long long integer = strtoll(text, &stop, 10);
  return *stop ? damaged(m, "a bad number") : push_new(m, CR__INTEGER, integer);
}

/* 'text' with Python's escapes; those that matter in names are \\ and the quote. */
static int take_quoted(machine *m) {
  const char *line = NULL;
  size_t bytes = 0;
  CR_TRY(take_line(m, &line, &bytes));
  if (bytes < 2 || (line[0] != '\'' && line[0] != '"') || line[bytes - 1] != line[0])
    return damaged(m, "a bad string");
  char *text = cr__arena_alloc(m->arena, bytes);
  if (!text) return no_memory(m);
  size_t n = 0;
  for (size_t i = 1; i + 1 < bytes; i++) {
    if (line[i] == '\\' && i + 2 < bytes && (line[i + 1] == '\\' || line[i + 1] == line[0])) i++;
    text[n++] = line[i];
  }
  return push_text(m, text, n);
}

static int memo_put(machine *m, uint64_t index) {
  cr__value *value = NULL;
  CR_TRY(top(m, &value));
  /* A pickler numbers its memo from 0 or 1 on, so no index exceeds the pickle's length. */
  if (index > (uint64_t)(m->end - m->start)) return damaged(m, "a bad memo number");
  if ((int64_t)index >= m->memo_size) {
    int64_t size = m->memo_size ? m->memo_size : 256;
    while (size <= (int64_t)index) size *= 2;
    cr__value **memo = realloc(m->memo, (size_t)size * sizeof(void *));
    if (!memo) return no_memory(m);
    memset(memo + m->memo_size, 0, (size_t)(size - m->memo_size) * sizeof(void *));
    m->memo = memo;
    m->memo_size = size;
  }
  if (!m->memo[index]) m->memo_count++;
  m->memo[index] = value;
  return CR_OK;
}

static int memo_get(machine *m, uint64_t index) {
  if (index >= (uint64_t)m->memo_size || !m->memo[index]) return damaged(m, "a bad memo number");
  return push(m, m->memo[index]);
}

static int take_memo_line(machine *m, uint64_t *index) {
  const char *line = NULL;
  size_t bytes = 0;
  CR_TRY(take_line(m, &line, &bytes));
  *index = 0;
  if (bytes == 0 || bytes > 12) return damaged(m, "a bad memo number");
  for (size_t i = 0; i < bytes; i++) {
    if (line[i] < '0' || line[i] > '9') return damaged(m, "a bad memo number");
    *index = *index * 10 + (uint64_t)(line[i] - '0');
  }
  return CR_OK;
}

/* Tuples of the top n values. */
static int make_tuple(machine *m, int n) {
  cr__value *tuple = cr__value_new(m->arena, CR__TUPLE), *item = NULL;
  if (!tuple) return no_memory(m);
  for (int i = n; i > 0; i--)
    if (m->depth < n || m->stack[m->depth - i]->kind == CR__MARK)
      return damaged(m, "a value is missing");
  for (int i = n; i > 0; i--)
    if (!cr__value_push(m->arena, tuple, m->stack[m->depth - i])) return no_memory(m);
  for (int i = 0; i < n; i++) CR_TRY(pop(m, &item));
  return push(m, tuple);
}

static int make_from_mark(machine *m, enum cr__value_kind kind) {
  int64_t first = 0;
  CR_TRY(find_mark(m, &first));
  if (kind == CR__DICT && (m->depth - first) % 2) return damaged(m, "a key without a value");
  cr__value *value = cr__value_new(m->arena, kind);
  if (!value) return no_memory(m);
  CR_TRY(collect(m, value, first));
  return push(m, value);
}

/* Items above the mark go into the container below it. */
static int extend(machine *m, enum cr__value_kind kind) {
  int64_t first = 0;
  CR_TRY(find_mark(m, &first));
  if (first < 2 || m->stack[first - 2]->kind != kind ||
      (kind == CR__DICT && (m->depth - first) % 2))
    return damaged(m, "items for something that takes none");
  return collect(m, m->stack[first - 2], first);
}

static int extend_one(machine *m, enum cr__value_kind kind) {
  cr__value *key = NULL, *value = NULL, *container = NULL;
  CR_TRY(pop(m, &value));
  if (kind == CR__DICT) CR_TRY(pop(m, &key));
  CR_TRY(top(m, &container));
  if (container->kind != kind) return damaged(m, "items for something that takes none");
  if (key && !cr__value_push(m->arena, container, key)) return no_memory(m);
  return cr__value_push(m->arena, container, value) ? CR_OK : no_memory(m);
}

static int push_global(machine *m, const char *module, size_t module_bytes, const char *name,
                       size_t name_bytes) {
  cr__value *value = NULL;
  CR_TRY(cr__pickle_global(m->pickle, &value, module, module_bytes, name, name_bytes));
  return push(m, value);
}

static int global_lines(machine *m) {
  const char *module = NULL, *name = NULL;
  size_t module_bytes = 0, name_bytes = 0;
  CR_TRY(take_line(m, &module, &module_bytes));
  CR_TRY(take_line(m, &name, &name_bytes));
  return push_global(m, module, module_bytes, name, name_bytes);
}

static int global_from_stack(machine *m) {
  cr__value *module = NULL, *name = NULL;
  CR_TRY(pop(m, &name));
  CR_TRY(pop(m, &module));
  if (name->kind != CR__STRING || module->kind != CR__STRING)
    return damaged(m, "a global without a name");
  return push_global(m, module->text, module->bytes, name->text, name->bytes);
}

static int call(machine *m, cr__value *callee, cr__value *arguments) {
  cr__value *result = NULL;
  if (callee->kind != CR__GLOBAL || arguments->kind != CR__TUPLE)
    return damaged(m, "a call of what is no function");
  CR_TRY(cr__pickle_call(m->pickle, &result, callee, arguments));
  return push(m, result);
}

static int reduce(machine *m) {
  cr__value *callee = NULL, *arguments = NULL;
  CR_TRY(pop(m, &arguments));
  CR_TRY(pop(m, &callee));
  return call(m, callee, arguments);
}

/* NEWOBJ_EX has keyword arguments on top; only empty ones are known to plain data. */
static int new_object(machine *m, bool keywords) {
  cr__value *callee = NULL, *arguments = NULL, *words = NULL;
  if (keywords) {
    CR_TRY(pop(m, &words));
    if (words->kind != CR__DICT || words->count) return damaged(m, "keyword arguments");
  }
  CR_TRY(pop(m, &arguments));
  CR_TRY(pop(m, &callee));
  return call(m, callee, arguments);
}

/* Attributes such as a state_dict's _metadata: taken off and forgotten. */
static int build(machine *m) {
  cr__value *state = NULL, *object = NULL;
  CR_TRY(pop(m, &state));
  CR_TRY(top(m, &object));
  if (object->kind != CR__DICT && object->kind != CR__TENSOR)
    return damaged(m, "attributes for something that has none");
  return CR_OK;
}

static int persistent(machine *m) {
  cr__value *id = NULL, *value = NULL;
  CR_TRY(pop(m, &id));
  CR_TRY(cr__pickle_persistent(m->pickle, &value, id));
  return push(m, value);
}

static int take_binary_float(machine *m) {
  const uint8_t *p = NULL;
  CR_TRY(take(m, 8, &p));
  uint64_t bits = 0;
  double real;
  for (int i = 0; i < 8; i++) bits = bits << 8 | p[i];
  memcpy(&real, &bits, sizeof real);
  return push_real(m, real);
}

static int pop_any(machine *m) {
  if (m->depth == 0) return damaged(m, "a value is missing");
  m->depth--;
  return CR_OK;
}

static int pop_mark(machine *m) {
  int64_t first = 0;
  CR_TRY(find_mark(m, &first));
  m->depth = first - 1;
  return CR_OK;
}

static int take_line_text(machine *m) {
  const char *text = NULL;
  size_t bytes = 0;
  CR_TRY(take_line(m, &text, &bytes));
  return push_text(m, text, bytes);
}

static int integer(machine *m, int width) {
  uint64_t value = 0;
  CR_TRY(take_number(m, width, &value));
  return push_new(m, CR__INTEGER, width == 4 ? (int32_t)(uint32_t)value : (int64_t)value);
}

static int memo_by_number(machine *m, int width, bool get) {
  uint64_t index = 0;
  CR_TRY(width ? take_number(m, width, &index) : take_memo_line(m, &index));
  return get ? memo_get(m, index) : memo_put(m, index);
}

static int step(machine *m, uint8_t opcode) {
  uint64_t number = 0;
  cr__value *value = NULL;
  switch (opcode) {
  case 0x80: /* PROTO */
    CR_TRY(take_number(m, 1, &number));
    return number <= 5 ? CR_OK : damaged(m, "an unknown protocol");
  case 0x95: /* FRAME: its length, which nothing here depends on */
    return take_number(m, 8, &number);
  case 'N':
    return push_new(m, CR__NONE, 0);
  case 0x88:
    return push_new(m, CR__FLAG, 1);
  case 0x89:
    return push_new(m, CR__FLAG, 0);
  case 'J':
    return integer(m, 4);
  case 'K':
    return integer(m, 1);
  case 'M':
    return integer(m, 2);
  case 0x8a:
    return take_long(m, 1);
  case 0x8b:
    return take_long(m, 4);
  case 'I':
  case 'L':
  case 'F':
    return take_text_number(m, opcode);
  case 'G':
    return take_binary_float(m);
  case 'S':
    return take_quoted(m);
  case 'V':
    return take_line_text(m);
  case 'T':
  case 'X':
  case 'B':
    return take_text(m, 4);
  case 'U':
  case 'C':
  case 0x8c:
    return take_text(m, 1);
  case 0x8d:
  case 0x8e:
  case 0x96:
    return take_text(m, 8);
  case '(':
    return push_empty(m, CR__MARK);
  case ']':
  case 0x8f:
    return push_empty(m, CR__LIST);
  case ')':
    return push_empty(m, CR__TUPLE);
  case '}':
    return push_empty(m, CR__DICT);
  case 'l':
  case 0x91:
    return make_from_mark(m, CR__LIST);
  case 't':
    return make_from_mark(m, CR__TUPLE);
  case 'd':
    return make_from_mark(m, CR__DICT);
  case 0x85:
    return make_tuple(m, 1);
  case 0x86:
    return make_tuple(m, 2);
  case 0x87:
    return make_tuple(m, 3);
  case 'a':
    return extend_one(m, CR__LIST);
  case 's':
    return extend_one(m, CR__DICT);
  case 'e':
  case 0x90:
    return extend(m, CR__LIST);
  case 'u':
    return extend(m, CR__DICT);
  case '0':
    return pop_any(m);
  case '1':
    return pop_mark(m);
  case '2':
    CR_TRY(top(m, &value));
    return push(m, value);
  case 'q':
    return memo_by_number(m, 1, false);
  case 'r':
    return memo_by_number(m, 4, false);
  case 'p':
    return memo_by_number(m, 0, false);
  case 'h':
    return memo_by_number(m, 1, true);
  case 'j':
    return memo_by_number(m, 4, true);
  case 'g':
    return memo_by_number(m, 0, true);
  case 0x94:
    return memo_put(m, (uint64_t)m->memo_count);
  case 'c':
    return global_lines(m);
  case 'i': /* INST: a call; its name is refused unless it is ours, and then it is no class */
    CR_TRY(global_lines(m));
    return damaged(m, "an instance of an old class");
  case 0x93:
    return global_from_stack(m);
  case 'R':
    return reduce(m);
  case 0x81:
    return new_object(m, false);
  case 0x92:
    return new_object(m, true);
  case 'b':
    return build(m);
  case 'Q':
    return persistent(m);
  default:
    m->p--;
    return damaged(m, "an opcode that plain data and tensors do not need");
  }
}

int cr__pickle_read(cr__pickle *pickle, cr__value **out, const uint8_t *data, int64_t size,
                    int64_t *used) {
  machine m = {
      .pickle = pickle, .arena = pickle->arena, .start = data, .p = data, .end = data + size};
  *out = NULL;
  *used = 0;
  pickle->budget = size;
  pickle->storages = cr__value_new(pickle->arena, CR__LIST);
  int rc = pickle->storages ? CR_OK : CR_ENOMEM;
  while (rc >= 0) {
    if (m.p == m.end) {
      rc = damaged(&m, "it is cut off");
      break;
    }
    uint8_t opcode = *m.p++;
    if (opcode == '.') {
      rc = pop(&m, out);
      break;
    }
    rc = step(&m, opcode);
  }
  *used = m.p - m.start;
  free(m.stack);
  free(m.memo);
  return rc;
}
