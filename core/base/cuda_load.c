/* Finds and loads crescent_cuda.so and the CUDA libraries that it needs.
 *
 * crescent_cuda.so needs cuBLASLt and cuDNN 9. They may be installed in the system, in CUDA_HOME,
 * or in the folders of PyPI's nvidia packages, which PyTorch installs. They are loaded first, by
 * full path if the dynamic loader does not know them; crescent_cuda.so then finds them already
 * loaded. cuDNN finds its sublibraries in its own folder.
 *
 * Invariant: loading is tried once. Every later call reports the same failure. */
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/backend.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char failure[600];

/* Loads FOLDER/NAME. Returns NULL if the file is missing or cannot be loaded. */
static void *load_from(const char *folder, const char *name) {
  char path[4096];
  int n = snprintf(path, sizeof path, "%s/%s", folder, name);
  if (n < 0 || n >= (int)sizeof path || access(path, R_OK) != 0) return NULL;
  return dlopen(path, RTLD_NOW | RTLD_GLOBAL);
}

/* Searches FOLDER/nvidia/<package>/lib of each of PyPI's nvidia packages. */
static void *load_from_packages(const char *folder, const char *name) {
  char path[4096];
  int n = snprintf(path, sizeof path, "%s/nvidia", folder);
  if (n < 0 || n >= (int)sizeof path) return NULL;
  DIR *parts = opendir(path);
  if (!parts) return NULL;
  void *library = NULL;
  for (struct dirent *e = readdir(parts); e && !library; e = readdir(parts)) {
    if (e->d_name[0] == '.') continue;
    char lib[4400];
    n = snprintf(lib, sizeof lib, "%s/%s/lib", path, e->d_name);
    if (n > 0 && n < (int)sizeof lib) library = load_from(lib, name);
  }
  closedir(parts);
  return library;
}

/* Searches BASE/python3.X/site-packages and dist-packages of every Python under BASE. */
static void *load_from_pythons(const char *base, const char *name) {
  DIR *versions = opendir(base);
  if (!versions) return NULL;
  void *library = NULL;
  for (struct dirent *e = readdir(versions); e && !library; e = readdir(versions)) {
    if (strncmp(e->d_name, "python3", 7) != 0) continue;
    static const char *const kinds[] = {"site-packages", "dist-packages"};
    for (int i = 0; i < 2 && !library; i++) {
      char path[4096];
      int n = snprintf(path, sizeof path, "%s/%s/%s", base, e->d_name, kinds[i]);
      if (n > 0 && n < (int)sizeof path) library = load_from_packages(path, name);
    }
  }
  closedir(versions);
  return library;
}

static void *from_environment(const char *variable, const char *below, const char *name,
                              void *(*load)(const char *, const char *)) {
  const char *value = getenv(variable);
  if (!value || !*value) return NULL;
  char path[4096];
  int n = snprintf(path, sizeof path, "%s%s", value, below);
  return n > 0 && n < (int)sizeof path ? load(path, name) : NULL;
}

static void *find_library(const char *name) {
  void *l = from_environment("CUDA_HOME", "/lib64", name, load_from);
  if (!l) l = from_environment("CUDA_HOME", "/lib", name, load_from);
  if (!l) l = dlopen(name, RTLD_NOW | RTLD_GLOBAL); /* the dynamic loader's own search path */
  if (!l) l = load_from("/usr/local/cuda/lib64", name);
  if (!l) l = from_environment("VIRTUAL_ENV", "/lib", name, load_from_pythons);
  if (!l) l = from_environment("CONDA_PREFIX", "/lib", name, load_from_pythons);
  if (!l) l = from_environment("HOME", "/.local/lib", name, load_from_pythons);
  if (!l) l = load_from_pythons("/usr/local/lib", name);
  if (!l) l = load_from_pythons("/usr/lib", name);
  return l;
}

static void load(void) {
  static const struct {
    const char *name, *what;
  } needed[] = {{"libcublasLt.so.13", "cuBLAS 13: pip install nvidia-cublas"},
                {"libcudnn.so.9", "cuDNN 9: pip install nvidia-cudnn-cu13"}};
  if (!dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL)) {
    snprintf(failure, sizeof failure,
             "no NVIDIA driver is on this machine (libcuda.so.1); --device cpu runs without one");
    return;
  }
  Dl_info self;
  char path[4096] = "crescent_cuda.so";
  if (dladdr(failure, &self) && self.dli_fname && strrchr(self.dli_fname, '/')) {
    int folder = (int)(strrchr(self.dli_fname, '/') - self.dli_fname);
    snprintf(path, sizeof path, "%.*s/crescent_cuda.so", folder, self.dli_fname);
  }
  if (strchr(path, '/') && access(path, R_OK) != 0) {
    snprintf(
        failure, sizeof failure,
        "the CUDA part, crescent_cuda.so, was not built: install the CUDA toolkit 13 and run make");
    return;
  }
  for (int i = 0; i < 2; i++) {
    if (find_library(needed[i].name)) continue;
    snprintf(
        failure, sizeof failure,
        "%s is missing or does not load (%s; or set CUDA_HOME to the folder of the CUDA toolkit)",
        needed[i].name, needed[i].what);
    return;
  }
  void *part = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!part) {
    snprintf(failure, sizeof failure, "%.500s", dlerror());
    return;
  }
  int (*start)(void) = NULL;
  *(void **)&start = dlsym(part, "cr__cuda_start");
  if (!start) {
    snprintf(failure, sizeof failure, "%s is not Crescent's CUDA part", path);
  } else if (start() < 0) {
    snprintf(failure, sizeof failure, "%.500s", cr_last_error());
  }
}

CR_EXPORT int cr_cuda_library(const char *name) {
  return find_library(name) ? CR_OK : cr__fail(CR_EDEVICE, "%s is missing", name);
}

int cr__cuda_load(const char *name) {
  pthread_once(&once, load);
  return failure[0] ? cr__fail(CR_EDEVICE, "%s: %s", name, failure) : CR_OK;
}
