/* Reading the switches (switches.h). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/internal.h"
#include "device/switches.h"

enum { VALUES = 4 };

static const struct {
  const char *name, *values[VALUES];
} switches[] = {
#define ROW(name, ...) {"CR_" #name, {__VA_ARGS__}},
    CRK_SWITCHES(ROW)
#undef ROW
};

const char *crk_switch_text(crk_switch which) { return getenv(switches[which].name); }

int crk_switch_value(crk_switch which) {
  const char *text = crk_switch_text(which);
  for (int i = 0; text && i < VALUES && switches[which].values[i]; i++)
    if (strcmp(switches[which].values[i], text) == 0) return i;
  return -1;
}

int crk_switches_check(const char *name) {
  for (int i = 0; i < CRK_SWITCH_COUNT; i++) {
    const char *text = crk_switch_text((crk_switch)i);
    if (!text || !*text || !switches[i].values[0] || crk_switch_value((crk_switch)i) >= 0) continue;
    char values[100] = "";
    size_t used = 0;
    for (int k = 0; k < VALUES && switches[i].values[k]; k++)
      used += (size_t)snprintf(values + used, sizeof values - used, "%s%s", k ? ", " : "",
                               switches[i].values[k]);
    return cr__fail(CR_EINVAL, "%s: the environment sets %s=%s, which takes one of: %s", name,
                    switches[i].name, text, values);
  }
  return CR_OK;
}
