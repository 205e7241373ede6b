/* The names of operations, and a check that the tables of base/operations.h match the enums of
 * crescent.h. */
#include "base/operations.h"

#include "base/internal.h"

#define PLACE(OP, ...) PLACE_##OP,
#define STANDS(OP, ...)                                                                            \
  _Static_assert((int)(OP) == (int)PLACE_##OP,                                                     \
                 #OP " has another position in crescent.h than in base/operations.h");
/* Checks that each row has its enumerator's position, and that there are as many rows. */
#define CHECK(TABLE, COUNT)                                                                        \
  enum { TABLE(PLACE) PLACE_##COUNT };                                                             \
  TABLE(STANDS)                                                                                    \
  _Static_assert((int)(COUNT) == (int)PLACE_##COUNT, #TABLE " lacks a row for an enumerator")

CHECK(CR_DTYPE_TABLE, CR_DTYPES);
CHECK(CR_UNARY_TABLE, CR_UNARY_OPS);
CHECK(CR_BINARY_TABLE, CR_BINARY_OPS);
CHECK(CR_REDUCE_TABLE, CR_REDUCE_OPS);
CHECK(CR_ACT_TABLE, CR_ACTS);
CHECK(CR_RESIZE_TABLE, CR_RESIZE_METHODS);
CHECK(CR_RNG_TABLE, CR_RNG_KINDS);
_Static_assert(CR_UNARY_OPS <= 64 && CR_BINARY_OPS < 64, "a set holds 64 operations");

#define QUOTED(OP, NAME, ...) [OP] = #NAME,
#define NAMED(OP, NAME) [OP] = NAME,
#define DEFINE_NAMES(FUNCTION, TABLE, ROW, COUNT)                                                  \
  CR_EXPORT const char *FUNCTION(int32_t op) {                                                     \
    static const char *const names[COUNT] = {TABLE(ROW)};                                          \
    return op < 0 || op >= (COUNT) ? NULL : names[op];                                             \
  }
DEFINE_NAMES(cr_unary_name, CR_UNARY_TABLE, QUOTED, CR_UNARY_OPS)
DEFINE_NAMES(cr_binary_name, CR_BINARY_TABLE, QUOTED, CR_BINARY_OPS)
DEFINE_NAMES(cr_reduce_name, CR_REDUCE_TABLE, QUOTED, CR_REDUCE_OPS)
DEFINE_NAMES(cr_act_name, CR_ACT_TABLE, QUOTED, CR_ACTS)
DEFINE_NAMES(cr_resize_method_name, CR_RESIZE_TABLE, QUOTED, CR_RESIZE_METHODS)
DEFINE_NAMES(cr_generator_kind_name, CR_RNG_TABLE, NAMED, CR_RNG_KINDS)
