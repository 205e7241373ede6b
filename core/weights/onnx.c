/* ONNX files, which hold one ModelProto. Its initializers become the file's tensors, and so do the
 * tensors among its nodes' attributes, under the name "@N.NAME" for node N (from 0). The graph
 * becomes the metadata:
 *
 *     {"ir_version": 6, "producer": "pytorch", "opsets": {"": 11}, "inputs": [VALUE], "outputs":
 *      [VALUE], "nodes": [{"op", "domain", "name", "inputs": ["x"], "outputs": ["y"], "attributes":
 *      [{"name", "type", and the present ones of "f", "i", "s", "t", "floats", "ints",
 *      "strings"}]}]}
 *     VALUE = {"name", "type": the number of the element type, "shape": [2, "N", null]}
 *
 * Of graphs inside attributes, functions, sparse tensors and values that are not tensors only the
 * names are read. This reader checks that everything lies within the file; cr.onnx checks what it
 * means. */
#include "weights/onnx.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Field numbers of the messages. */
enum { MODEL_IR_VERSION = 1, MODEL_PRODUCER = 2, MODEL_GRAPH = 7, MODEL_OPSET = 8 };
enum {
  GRAPH_NODE = 1,
  GRAPH_INITIALIZER = 5,
  GRAPH_INPUT = 11,
  GRAPH_OUTPUT = 12,
  GRAPH_SPARSE = 15
};
enum {
  NODE_INPUT = 1,
  NODE_OUTPUT = 2,
  NODE_NAME = 3,
  NODE_OP = 4,
  NODE_ATTRIBUTE = 5,
  NODE_DOMAIN = 7
};
enum {
  ATTRIBUTE_NAME = 1,
  ATTRIBUTE_F = 2,
  ATTRIBUTE_I = 3,
  ATTRIBUTE_S = 4,
  ATTRIBUTE_T = 5,
  ATTRIBUTE_FLOATS = 7,
  ATTRIBUTE_INTS = 8,
  ATTRIBUTE_STRINGS = 9,
  ATTRIBUTE_TYPE = 20
};

void cr__onnx_message(const cr_weights *w, const uint8_t *at, const char *what) {
  cr__weights_message(w, CR_EFORMAT, "damaged ONNX file: %s (byte %lld)", what,
                      (long long)(at - w->map->data));
}

int cr__onnx_find(const cr_weights *w, cr__proto message, uint32_t number, cr__proto_field *out) {
  cr__proto_field f;
  int more;
  *out = (cr__proto_field){.body = {message.p, message.p}};
  while ((more = cr__proto_next(&message, &f)) > 0)
    if (f.number == number) *out = f;
  return more < 0 ? cr__onnx_damaged(w, message.p, "a message is truncated") : CR_OK;
}

static bool is_name(const cr__proto *text) {
  size_t n = (size_t)cr__proto_size(text);
  return !memchr(text->p, 0, n) && cr__utf8_valid((const char *)text->p, n);
}

int cr__onnx_name(cr_weights *w, cr__proto message, uint32_t number, const char **out) {
  cr__proto_field f;
  CR_TRY(cr__onnx_find(w, message, number, &f));
  if (!is_name(&f.body)) return cr__onnx_damaged(w, f.body.p, "a name is not valid UTF-8");
  *out = cr__arena_string(&w->arena, (const char *)f.body.p, (size_t)cr__proto_size(&f.body));
  return *out ? CR_OK : CR_ENOMEM;
}

/* ---- the graph as JSON ---- */

static void put_text(cr_weights *w, const cr__proto *text) {
  cr__text_json_string(&w->metadata, (const char *)text->p, (size_t)cr__proto_size(text));
}

static void put_integer(cr_weights *w, uint64_t value) {
  char text[24];
  snprintf(text, sizeof text, "%lld", (long long)value);
  cr__text_puts(&w->metadata, text);
}

/* nan and the infinities become strings, since JSON lacks them. */
static void put_float(cr_weights *w, uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  if (isfinite(value))
    cr__text_json_number(&w->metadata, value);
  else
    cr__text_puts(&w->metadata, isnan(value) ? "\"nan\"" : value > 0 ? "\"inf\"" : "\"-inf\"");
}

/* Appends KEY and a string field that is a name. */
static int put_name(cr_weights *w, cr__proto message, uint32_t number, const char *key) {
  cr__proto_field f;
  CR_TRY(cr__onnx_find(w, message, number, &f));
  if (!is_name(&f.body)) return cr__onnx_damaged(w, f.body.p, "a name is not valid UTF-8");
  cr__text_puts(&w->metadata, key);
  put_text(w, &f.body);
  return CR_OK;
}

/* Appends KEY[...] with all fields `number` of a message; `put` appends each. */
static int put_list(cr_weights *w, cr__proto message, uint32_t number, const char *key,
                    int (*put)(cr_weights *w, const cr__proto_field *f, int32_t index)) {
  cr__proto_field f;
  int32_t count = 0;
  int more;
  cr__text_puts(&w->metadata, key);
  cr__text_puts(&w->metadata, "[");
  while ((more = cr__proto_next(&message, &f)) > 0) {
    if (f.number != number) continue;
    if (count) cr__text_puts(&w->metadata, ",");
    CR_TRY(put(w, &f, count++));
  }
  cr__text_puts(&w->metadata, "]");
  return more < 0 ? cr__onnx_damaged(w, message.p, "a message is truncated") : CR_OK;
}

static int put_string(cr_weights *w, const cr__proto_field *f, int32_t index) {
  (void)index;
  if (f->wire != CR__PROTO_BYTES || !is_name(&f->body))
    return cr__onnx_damaged(w, f->body.p, "a name is not valid UTF-8");
  put_text(w, &f->body);
  return CR_OK;
}

/* Numbers, packed or not. All numbers of a packed field are appended, separated by commas. */
static int put_floats(cr_weights *w, const cr__proto_field *f, int32_t index) {
  (void)index;
  if (f->wire != CR__PROTO_BYTES) {
    put_float(w, (uint32_t)f->value);
    return CR_OK;
  }
  if (cr__proto_size(&f->body) % 4)
    return cr__onnx_damaged(w, f->body.p, "an attribute's numbers are truncated");
  for (const uint8_t *p = f->body.p; p < f->body.end; p += 4) {
    if (p > f->body.p) cr__text_puts(&w->metadata, ",");
    put_float(w, cr__le32(p));
  }
  return CR_OK;
}

static int put_integers(cr_weights *w, const cr__proto_field *f, int32_t index) {
  (void)index;
  cr__proto body = f->body;
  if (f->wire != CR__PROTO_BYTES) {
    put_integer(w, f->value);
    return CR_OK;
  }
  for (uint64_t value; body.p < body.end;) {
    if (body.p > f->body.p) cr__text_puts(&w->metadata, ",");
    if (!cr__proto_varint(&body, &value))
      return cr__onnx_damaged(w, body.p, "an attribute's numbers are truncated");
    put_integer(w, value);
  }
  return CR_OK;
}

/* Appends one attribute of node `index`. */
static int put_attribute(cr_weights *w, cr__proto message, int32_t index) {
  cr__proto_field f;
  cr__proto rest = message;
  bool floats = false, ints = false, strings = false;
  int more;
  CR_TRY(put_name(w, message, ATTRIBUTE_NAME, "{\"name\":"));
  while ((more = cr__proto_next(&rest, &f)) > 0) {
    if (f.number == ATTRIBUTE_TYPE || f.number == ATTRIBUTE_I) {
      cr__text_puts(&w->metadata, f.number == ATTRIBUTE_I ? ",\"i\":" : ",\"type\":");
      put_integer(w, f.value);
    } else if (f.number == ATTRIBUTE_F) {
      cr__text_puts(&w->metadata, ",\"f\":");
      put_float(w, (uint32_t)f.value);
    } else if (f.number == ATTRIBUTE_S) {
      cr__text_puts(&w->metadata, ",\"s\":");
      put_text(w, &f.body);
    } else if (f.number == ATTRIBUTE_T) {
      char text[340]; /* a longer name is truncated, which still identifies it */
      cr__proto_field name;
      CR_TRY(cr__onnx_find(w, message, ATTRIBUTE_NAME, &name));
      snprintf(text, sizeof text, "@%d.%.*s", index,
               (int)(cr__proto_size(&name.body) > 200 ? 200 : cr__proto_size(&name.body)),
               (const char *)name.body.p);
      const char *kept = cr__arena_string(&w->arena, text, strlen(text));
      if (!kept) return CR_ENOMEM;
      cr__text_puts(&w->metadata, ",\"t\":");
      cr__text_json_string(&w->metadata, kept, strlen(kept));
      CR_TRY(cr__onnx_tensor(w, f.body, kept));
    }
    floats = floats || f.number == ATTRIBUTE_FLOATS;
    ints = ints || f.number == ATTRIBUTE_INTS;
    strings = strings || f.number == ATTRIBUTE_STRINGS;
  }
  if (more < 0) return cr__onnx_damaged(w, rest.p, "an attribute is truncated");
  if (floats) CR_TRY(put_list(w, message, ATTRIBUTE_FLOATS, ",\"floats\":", put_floats));
  if (ints) CR_TRY(put_list(w, message, ATTRIBUTE_INTS, ",\"ints\":", put_integers));
  if (strings) CR_TRY(put_list(w, message, ATTRIBUTE_STRINGS, ",\"strings\":", put_string));
  cr__text_puts(&w->metadata, "}");
  return CR_OK;
}

static int put_node(cr_weights *w, const cr__proto_field *node, int32_t index) {
  cr__proto_field f;
  cr__proto rest = node->body;
  bool first = true;
  CR_TRY(put_name(w, node->body, NODE_OP, "{\"op\":"));
  CR_TRY(put_name(w, node->body, NODE_DOMAIN, ",\"domain\":"));
  CR_TRY(put_name(w, node->body, NODE_NAME, ",\"name\":"));
  CR_TRY(put_list(w, node->body, NODE_INPUT, ",\"inputs\":", put_string));
  CR_TRY(put_list(w, node->body, NODE_OUTPUT, ",\"outputs\":", put_string));
  cr__text_puts(&w->metadata, ",\"attributes\":[");
  while (cr__proto_next(&rest, &f) > 0) {
    if (f.number != NODE_ATTRIBUTE) continue;
    if (!first) cr__text_puts(&w->metadata, ",");
    first = false;
    CR_TRY(put_attribute(w, f.body, index));
  }
  cr__text_puts(&w->metadata, "]}");
  return CR_OK;
}

/* TensorShapeProto.Dimension: a number, a name, or null. */
static int put_dimension(cr_weights *w, const cr__proto_field *dimension, int32_t index) {
  cr__proto_field value, name;
  (void)index;
  CR_TRY(cr__onnx_find(w, dimension->body, 1, &value));
  CR_TRY(cr__onnx_find(w, dimension->body, 2, &name));
  if (value.number)
    put_integer(w, value.value);
  else if (name.number)
    put_text(w, &name.body);
  else
    cr__text_puts(&w->metadata, "null");
  return CR_OK;
}

static int put_value(cr_weights *w, const cr__proto_field *value, int32_t index) {
  cr__proto_field type, tensor, element, shape;
  (void)index;
  CR_TRY(put_name(w, value->body, 1, "{\"name\":"));
  CR_TRY(cr__onnx_find(w, value->body, 2, &type));
  CR_TRY(cr__onnx_find(w, type.body, 1, &tensor));
  CR_TRY(cr__onnx_find(w, tensor.body, 1, &element));
  CR_TRY(cr__onnx_find(w, tensor.body, 2, &shape));
  cr__text_puts(&w->metadata, ",\"type\":");
  put_integer(w, element.value);
  if (shape.number) CR_TRY(put_list(w, shape.body, 1, ",\"shape\":", put_dimension));
  cr__text_puts(&w->metadata, "}");
  return CR_OK;
}

static int put_opsets(cr_weights *w, cr__proto model) {
  cr__proto_field f, version;
  bool first = true;
  cr__text_puts(&w->metadata, ",\"opsets\":{");
  while (cr__proto_next(&model, &f) > 0) {
    if (f.number != MODEL_OPSET) continue;
    CR_TRY(put_name(w, f.body, 1, first ? "" : ","));
    CR_TRY(cr__onnx_find(w, f.body, 2, &version));
    cr__text_puts(&w->metadata, ":");
    put_integer(w, version.value);
    first = false;
  }
  cr__text_puts(&w->metadata, "}");
  return first ? cr__onnx_damaged(w, model.p, "it has no operator set") : CR_OK;
}

static int read_tensors(cr_weights *w, cr__proto graph) {
  cr__proto_field f;
  while (cr__proto_next(&graph, &f) > 0) {
    if (f.number == GRAPH_INITIALIZER) CR_TRY(cr__onnx_tensor(w, f.body, NULL));
    if (f.number == GRAPH_SPARSE) {
      cr__proto_field values;
      const char *name;
      CR_TRY(cr__onnx_find(w, f.body, 1, &values));
      CR_TRY(cr__onnx_name(w, values.body, 8, &name));
      CR_TRY(cr__weights_add_trouble(w, name, "is sparse, which is not handled"));
    }
  }
  return CR_OK;
}

int cr__onnx_read(cr_weights *w) {
  w->format = "onnx";
  cr__proto model = {w->map->data, w->map->data + w->map->size}, rest = model;
  cr__proto_field f, graph = {0}, version;
  int graphs = 0, more;
  while ((more = cr__proto_next(&rest, &f)) > 0)
    if (f.number == MODEL_GRAPH && f.wire == CR__PROTO_BYTES) {
      graph = f;
      graphs++;
    }
  if (more < 0) return cr__onnx_damaged(w, rest.p, "it is truncated or damaged");
  if (graphs != 1)
    return cr__onnx_damaged(w, rest.p, graphs ? "it has two graphs" : "it has no graph");
  CR_TRY(cr__onnx_find(w, model, MODEL_IR_VERSION, &version));
  cr__text_puts(&w->metadata, "{\"ir_version\":");
  put_integer(w, version.value);
  CR_TRY(put_name(w, model, MODEL_PRODUCER, ",\"producer\":"));
  CR_TRY(put_opsets(w, model));
  CR_TRY(read_tensors(w, graph.body));
  CR_TRY(put_list(w, graph.body, GRAPH_INPUT, ",\"inputs\":", put_value));
  CR_TRY(put_list(w, graph.body, GRAPH_OUTPUT, ",\"outputs\":", put_value));
  CR_TRY(put_list(w, graph.body, GRAPH_NODE, ",\"nodes\":", put_node));
  cr__text_puts(&w->metadata, "}");
  return CR_OK;
}
