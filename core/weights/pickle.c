/* The pickle virtual machine: its stack, its memo, and the opcodes that work on them, protocols 0
 * to 5 as far as data needs them. Python's Lib/pickletools.py describes each opcode. */
#include "weights/pickle.h"

#include <stdlib.h>
#include <string.h>

#include "base/internal.h"

typedef struct machine {
  cr__pickle *pickle;
  cr__arena *arena;
  cr__pickle_bytes bytes;
  cr__value **stack;
  int64_t depth, stack_capacity;
  cr__value **memo;
  int64_t memo_size, memo_count;
} machine;

#define damaged(m, what) cr__pickle_damaged(&(m)->bytes, what)

static int no_memory(const machine *m) { return cr__pickle_no_memory(m->pickle); }

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

/* Pushes an empty list, tuple or dictionary, or a mark. */
static int push_empty(machine *m, int kind) { return push(m, cr__value_new(m->arena, kind)); }

/* Pops the top value; a mark is not a value. */
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

/* Finds the index of the first value above the last mark. */
static int find_mark(const machine *m, int64_t *first) {
  int64_t i = m->depth;
  while (i > 0 && m->stack[i - 1]->kind != CR__MARK) i--;
  if (i == 0) return damaged(m, "a mark is missing");
  *first = i;
  return CR_OK;
}

/* Moves the values from `first` on to `list`, and pops the mark below them. */
static int collect(machine *m, cr__value *list, int64_t first) {
  for (int64_t i = first; i < m->depth; i++)
    if (!cr__value_push(m->arena, list, m->stack[i])) return no_memory(m);
  m->depth = first - 1;
  return CR_OK;
}

static int memo_put(machine *m, uint64_t index) {
  cr__value *value = NULL;
  CR_TRY(top(m, &value));
  /* A pickler numbers its memo from 0 or 1 on, so no index exceeds the pickle's length. */
  if (index > (uint64_t)(m->bytes.end - m->bytes.start))
    return damaged(m, "an invalid memo number");
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
  if (index >= (uint64_t)m->memo_size || !m->memo[index])
    return damaged(m, "an invalid memo number");
  return push(m, m->memo[index]);
}

static int take_memo_line(machine *m, uint64_t *index) {
  const char *line = NULL;
  size_t bytes = 0;
  CR_TRY(cr__pickle_line(&m->bytes, &line, &bytes));
  *index = 0;
  if (bytes == 0 || bytes > 12) return damaged(m, "an invalid memo number");
  for (size_t i = 0; i < bytes; i++) {
    if (line[i] < '0' || line[i] > '9') return damaged(m, "an invalid memo number");
    *index = *index * 10 + (uint64_t)(line[i] - '0');
  }
  return CR_OK;
}

/* Makes a tuple of the top n values. */
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

static int make_from_mark(machine *m, int kind) {
  int64_t first = 0;
  CR_TRY(find_mark(m, &first));
  if (kind == CR__DICT && (m->depth - first) % 2) return damaged(m, "a key lacks its value");
  cr__value *value = cr__value_new(m->arena, kind);
  if (!value) return no_memory(m);
  CR_TRY(collect(m, value, first));
  return push(m, value);
}

/* Adds the items above the mark to the container below it. */
static int extend(machine *m, int kind) {
  int64_t first = 0;
  CR_TRY(find_mark(m, &first));
  if (first < 2 || m->stack[first - 2]->kind != (enum cr__value_kind)kind ||
      (kind == CR__DICT && (m->depth - first) % 2))
    return damaged(m, "items are added to a value that takes none");
  return collect(m, m->stack[first - 2], first);
}

static int extend_one(machine *m, int kind) {
  cr__value *key = NULL, *value = NULL, *container = NULL;
  CR_TRY(pop(m, &value));
  if (kind == CR__DICT) CR_TRY(pop(m, &key));
  CR_TRY(top(m, &container));
  if (container->kind != (enum cr__value_kind)kind)
    return damaged(m, "items are added to a value that takes none");
  if (key && !cr__value_push(m->arena, container, key)) return no_memory(m);
  return cr__value_push(m->arena, container, value) ? CR_OK : no_memory(m);
}

static int push_global(machine *m, const char *module, size_t module_bytes, const char *name,
                       size_t name_bytes) {
  cr__value *value = NULL;
  CR_TRY(cr__pickle_global_value(m->pickle, &value, module, module_bytes, name, name_bytes));
  return push(m, value);
}

static int global_lines(machine *m) {
  const char *module = NULL, *name = NULL;
  size_t module_bytes = 0, name_bytes = 0;
  CR_TRY(cr__pickle_line(&m->bytes, &module, &module_bytes));
  CR_TRY(cr__pickle_line(&m->bytes, &name, &name_bytes));
  return push_global(m, module, module_bytes, name, name_bytes);
}

static int global_from_stack(machine *m) {
  cr__value *module = NULL, *name = NULL;
  CR_TRY(pop(m, &name));
  CR_TRY(pop(m, &module));
  if (name->kind != CR__STRING || module->kind != CR__STRING)
    return damaged(m, "a global has no name");
  return push_global(m, module->text, module->bytes, name->text, name->bytes);
}

static int call(machine *m, cr__value *callee, cr__value *arguments) {
  cr__value *result = NULL;
  if (callee->kind != CR__GLOBAL || arguments->kind != CR__TUPLE)
    return damaged(m, "a value that is not a function is called");
  CR_TRY(cr__pickle_call(m->pickle, &result, callee, arguments));
  return push(m, result);
}

static int reduce(machine *m) {
  cr__value *callee = NULL, *arguments = NULL;
  CR_TRY(pop(m, &arguments));
  CR_TRY(pop(m, &callee));
  return call(m, callee, arguments);
}

/* NEWOBJ_EX has keyword arguments on top of the stack; plain data has only empty ones. */
static int new_object(machine *m, bool keywords) {
  cr__value *callee = NULL, *arguments = NULL, *words = NULL;
  if (keywords) {
    CR_TRY(pop(m, &words));
    if (words->kind != CR__DICT || words->count) return damaged(m, "a call has keyword arguments");
  }
  CR_TRY(pop(m, &arguments));
  CR_TRY(pop(m, &callee));
  return call(m, callee, arguments);
}

/* Attributes, such as a state_dict's _metadata, are popped and ignored. */
static int build(machine *m) {
  cr__value *state = NULL, *object = NULL;
  CR_TRY(pop(m, &state));
  CR_TRY(top(m, &object));
  if (object->kind != CR__DICT && object->kind != CR__TENSOR)
    return damaged(m, "attributes are set on a value that takes none");
  return CR_OK;
}

static int persistent(machine *m) {
  cr__value *id = NULL, *value = NULL;
  CR_TRY(pop(m, &id));
  CR_TRY(cr__pickle_persistent(m->pickle, &value, id));
  return push(m, value);
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

static int memo_number(machine *m, int width, uint64_t *index) {
  return width ? cr__pickle_number(&m->bytes, width, index) : take_memo_line(m, index);
}

static int get_by_number(machine *m, int width) {
  uint64_t index = 0;
  CR_TRY(memo_number(m, width, &index));
  return memo_get(m, index);
}

static int put_by_number(machine *m, int width) {
  uint64_t index = 0;
  CR_TRY(memo_number(m, width, &index));
  return memo_put(m, index);
}

/* Opcodes that differ only in a number: the kind of a value, a count, or the bytes of an operand
 * (0: a line of text). */
static const struct numbered {
  int opcode, number;
  int (*run)(machine *m, int number);
} numbered[] = {
    {'(', CR__MARK, push_empty},      /* MARK */
    {']', CR__LIST, push_empty},      /* EMPTY_LIST */
    {0x8f, CR__LIST, push_empty},     /* EMPTY_SET */
    {')', CR__TUPLE, push_empty},     /* EMPTY_TUPLE */
    {'}', CR__DICT, push_empty},      /* EMPTY_DICT */
    {'l', CR__LIST, make_from_mark},  /* LIST */
    {0x91, CR__LIST, make_from_mark}, /* FROZENSET */
    {'t', CR__TUPLE, make_from_mark}, /* TUPLE */
    {'d', CR__DICT, make_from_mark},  /* DICT */
    {0x85, 1, make_tuple},            /* TUPLE1 */
    {0x86, 2, make_tuple},            /* TUPLE2 */
    {0x87, 3, make_tuple},            /* TUPLE3 */
    {'a', CR__LIST, extend_one},      /* APPEND */
    {'s', CR__DICT, extend_one},      /* SETITEM */
    {'e', CR__LIST, extend},          /* APPENDS */
    {0x90, CR__LIST, extend},         /* ADDITEMS */
    {'u', CR__DICT, extend},          /* SETITEMS */
    {'q', 1, put_by_number},          /* BINPUT */
    {'r', 4, put_by_number},          /* LONG_BINPUT */
    {'p', 0, put_by_number},          /* PUT */
    {'h', 1, get_by_number},          /* BINGET */
    {'j', 4, get_by_number},          /* LONG_BINGET */
    {'g', 0, get_by_number},          /* GET */
};

static int step(machine *m, uint8_t opcode) {
  uint64_t number = 0;
  cr__value *value = NULL;
  CR_TRY(cr__pickle_literal(&m->bytes, opcode, &value));
  if (value) return push(m, value);
  for (size_t i = 0; i < sizeof numbered / sizeof *numbered; i++)
    if (numbered[i].opcode == opcode) return numbered[i].run(m, numbered[i].number);
  switch (opcode) {
  case 0x80: /* PROTO */
    CR_TRY(cr__pickle_number(&m->bytes, 1, &number));
    return number <= 5 ? CR_OK : damaged(m, "its protocol is unknown");
  case 0x95: /* FRAME: its length is not needed */
    return cr__pickle_number(&m->bytes, 8, &number);
  case '0': /* POP */
    return pop_any(m);
  case '1': /* POP_MARK */
    return pop_mark(m);
  case '2': /* DUP */
    CR_TRY(top(m, &value));
    return push(m, value);
  case 0x94: /* MEMOIZE */
    return memo_put(m, (uint64_t)m->memo_count);
  case 'c': /* GLOBAL */
    return global_lines(m);
  case 'i': /* INST: calls a class. A name that is not allowed is refused; an allowed one is not a
               class. */
    CR_TRY(global_lines(m));
    CR_TRY(pop(m, &value));
    CR_TRY(cr__pickle_refuse(m->pickle, value));
    return damaged(m, "it makes an instance of an old-style class");
  case 0x93: /* STACK_GLOBAL */
    return global_from_stack(m);
  case 'R': /* REDUCE */
    return reduce(m);
  case 0x81: /* NEWOBJ */
    return new_object(m, false);
  case 0x92: /* NEWOBJ_EX */
    return new_object(m, true);
  case 'b': /* BUILD */
    return build(m);
  case 'Q': /* BINPERSID */
    return persistent(m);
  default:
    m->bytes.p--;
    return damaged(m, "it has an opcode that plain data and tensors do not need");
  }
}

static int run(machine *m, cr__value **out) {
  for (;;) {
    if (m->bytes.p == m->bytes.end) return damaged(m, "it is truncated");
    uint8_t opcode = *m->bytes.p++;
    if (opcode == '.') return pop(m, out);
    CR_TRY(step(m, opcode));
  }
}

int cr__pickle_read(cr__pickle *pickle, cr__value **out, const uint8_t *data, int64_t size,
                    int64_t *used) {
  machine m = {
      .pickle = pickle, .arena = pickle->arena, .bytes = {pickle, data, data, data + size}};
  *out = NULL;
  pickle->budget = size;
  pickle->storages = cr__value_new(pickle->arena, CR__LIST);
  pickle->refused = cr__value_new(pickle->arena, CR__LIST);
  int rc = pickle->storages && pickle->refused ? run(&m, out) : no_memory(&m);
  /* If a name was refused, that is the error to report, whatever else failed. */
  for (int64_t i = 0; pickle->refused && i < pickle->refused->count; i++)
    if (!pickle->refused->items[i]->global.excused)
      rc = cr__pickle_refuse(pickle, pickle->refused->items[i]);
  *used = m.bytes.p - m.bytes.start;
  free(m.stack);
  free(m.memo);
  return rc;
}
