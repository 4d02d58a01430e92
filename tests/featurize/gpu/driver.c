/* Stands in for NVIDIA's driver (libcuda.so.1 and libnvidia-ml.so.1) with cards that environment variables describe:
 * FAKE_CUDA=13000        the version of CUDA it runs
 * FAKE_DRIVER=580.65.06  its own version; without it there is no management library
 * FAKE_GPUS=NAME:70,...  name and compute capability of each card
 * FAKE_INIT=999          the error with which it does not start
 * FAKE_CRASH=1           it ends the process
 * FAKE_CONTEXT=2         the error with which no program may use a card
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *setting(const char *name, const char *without) {
    const char *value = getenv(name);
    return value ? value : without;
}

static const char *card(int number) {
    const char *text = setting("FAKE_GPUS", "");
    while (number-- > 0 && text) text = (text = strchr(text, ',')) ? text + 1 : NULL;
    return text && *text ? text : NULL;
}

static int capability(int device) { return atoi(strchr(card(device), ':') + 1); }

int cuDriverGetVersion(int *version) { *version = atoi(setting("FAKE_CUDA", "13000")); return 0; }
int cuInit(unsigned flags) {
    (void)flags;
    if (getenv("FAKE_CRASH")) abort();
    return atoi(setting("FAKE_INIT", card(0) ? "0" : "100"));
}
int cuDeviceGetCount(int *count) { for (*count = 0; card(*count); ++*count); return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return card(number) ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) {
    int length = (int)(strchr(card(device), ':') - card(device));
    snprintf(name, size, "%.*s", length, card(device));
    return 0;
}
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? capability(device) / 10 : capability(device) % 10;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 16ul << 30; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = NULL; return atoi(setting("FAKE_CONTEXT", "0")); }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
int cuCtxPushCurrent_v2(void *context) { (void)context; return 0; }
int cuCtxPopCurrent_v2(void **context) { *context = NULL; return 0; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { *available = 12ul << 30; *total = 16ul << 30; return 0; }
int cuGetErrorString(int error, const char **text) {
    *text = error == 2     ? "out of memory"
            : error == 803 ? "system has unsupported display driver / cuda driver combination"
            : error == 999 ? "unknown error"
                           : NULL;
    return *text ? 0 : 1;
}
int nvmlInit_v2(void) { return getenv("FAKE_DRIVER") ? 0 : 1; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "%s", setting("FAKE_DRIVER", "")); return 0; }
