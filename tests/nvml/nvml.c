/* A libnvidia-ml.so.1 without a driver behind it, for the real bindings (nvidia-ml-py) to load.
 *
 * What it shows stands in the file that $FAKE_NVML names, one thing a line, read again by every nvmlInit:
 *
 *     driver 550.54.14 12040                    the driver's version, and its CUDA version as NVML counts it
 *     init 18                                   nvmlInit fails with this error
 *     gpu UUID NAME MINOR TOTAL FREE PROCESSES ERROR
 *     busy PERCENT                              of every device; without it, no device tells
 *     mig INDEX UUID NAME TOTAL FREE PROCESSES ERROR
 *
 * INDEX is that of the GPU, which is then in MIG mode; `mig INDEX -` is a place where no slice was made. NAME has `_`
 * for blanks, amounts are MiB, PROCESSES is `-` or `PID:MIB,...` (MIB `?`: the driver does not tell), ERROR is what asking
 * for the memory answers, mostly 0. Without the file the driver is not loaded. FREE and PROCESSES are only what the file
 * says: nothing here uses any memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9 };
enum { MOST_DEVICES = 32, MOST_PROCESSES = 16, MOST_SLICES = 7 };

typedef struct {
    char uuid[96], name[96], processes[256];
    unsigned minor, parent, place;
    unsigned long long total, free;
    int error, is_slice, in_mig_mode, is_gap;
} Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } Process;

static Device gpus[MOST_DEVICES], slices[MOST_DEVICES];
static unsigned gpu_count, slice_count;
static char driver[96];
static int cuda, init_error, busy = -1;

static void set_blanks(char *text) {
    for (; *text; text++)
        if (*text == '_') *text = ' ';
}

static void read_line(const char *line) {
    Device one = {0};
    if (sscanf(line, "driver %95s %d", driver, &cuda) == 2 || sscanf(line, "init %d", &init_error) == 1 ||
        sscanf(line, "busy %d", &busy) == 1)
        return;
    if (gpu_count < MOST_DEVICES && sscanf(line, "gpu %95s %95s %u %llu %llu %255s %d", one.uuid, one.name, &one.minor,
                                           &one.total, &one.free, one.processes, &one.error) == 7) {
        set_blanks(one.name);
        gpus[gpu_count++] = one;
        return;
    }
    int fields = sscanf(line, "mig %u %95s %95s %llu %llu %255s %d", &one.parent, one.uuid, one.name, &one.total, &one.free,
                        one.processes, &one.error);
    if (fields < 2 || one.parent >= gpu_count || slice_count == MOST_DEVICES) return;
    one.is_slice = 1;
    one.is_gap = fields < 7;
    for (unsigned i = 0; i < slice_count; i++) one.place += slices[i].parent == one.parent;
    set_blanks(one.name);
    gpus[one.parent].in_mig_mode = 1;
    slices[slice_count++] = one;
}

EXPORT int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    char line[1024];
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return NOT_LOADED;
    gpu_count = slice_count = 0;
    init_error = 0;
    busy = -1;
    while (fgets(line, sizeof line, file)) read_line(line);
    fclose(file);
    return init_error;
}

EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlShutdown(void) { return OK; }

EXPORT const char *nvmlErrorString(int error) {
    switch (error) {
    case NOT_LOADED: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    default: return "Some Error";
    }
}

static int copy(char *to, unsigned size, const char *text) {
    if (strlen(text) >= size) return TOO_SMALL;
    strcpy(to, text);
    return OK;
}

EXPORT int nvmlSystemGetDriverVersion(char *to, unsigned size) { return copy(to, size, driver); }
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *to) { return *to = cuda, OK; }
EXPORT int nvmlDeviceGetCount_v2(unsigned *to) { return *to = gpu_count, OK; }

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **to) {
    if (index >= gpu_count) return INVALID;
    return *to = &gpus[index], OK;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, Device **to) {
    for (unsigned i = 0; i < gpu_count; i++)
        if (!strcmp(gpus[i].uuid, uuid)) return *to = &gpus[i], OK;
    for (unsigned i = 0; i < slice_count; i++)
        if (!strcmp(slices[i].uuid, uuid)) return *to = &slices[i], OK;
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetUtilizationRates(Device *of, Utilization *to) {
    to->gpu = to->memory = (unsigned)busy;
    return busy < 0 || of->is_slice ? NOT_SUPPORTED : OK;
}

EXPORT int nvmlDeviceGetUUID(Device *of, char *to, unsigned size) { return copy(to, size, of->uuid); }
EXPORT int nvmlDeviceGetName(Device *of, char *to, unsigned size) { return copy(to, size, of->name); }
EXPORT int nvmlDeviceGetMinorNumber(Device *of, unsigned *to) { return *to = of->minor, OK; }

EXPORT int nvmlDeviceGetMemoryInfo(Device *of, Memory *to) {
    to->total = of->total << 20;
    to->free = of->free << 20;
    to->used = to->total - to->free;
    return of->error;
}

EXPORT int nvmlDeviceGetMigMode(Device *of, unsigned *now, unsigned *pending) {
    *now = *pending = (unsigned)of->in_mig_mode;
    return OK;
}

EXPORT int nvmlDeviceGetMaxMigDeviceCount(Device *of, unsigned *to) {
    return *to = of->in_mig_mode ? MOST_SLICES : 0, OK;
}

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(Device *of, unsigned place, Device **to) {
    for (unsigned i = 0; i < slice_count; i++)
        if (&gpus[slices[i].parent] == of && slices[i].place == place && !slices[i].is_gap) return *to = &slices[i], OK;
    return NOT_FOUND;
}

EXPORT int nvmlDeviceGetGpuInstanceId(Device *of, unsigned *to) { return *to = of->place + 1, OK; }
EXPORT int nvmlDeviceGetComputeInstanceId(Device *of, unsigned *to) { return (void)of, *to = 0, OK; }

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(Device *of, unsigned *count, Process *to) {
    Process found[MOST_PROCESSES];
    unsigned n = 0;
    for (const char *at = of->processes; n < MOST_PROCESSES && at && *at != '-'; n++) {
        memset(&found[n], 0, sizeof found[n]);
        if (sscanf(at, "%u:%llu", &found[n].pid, &found[n].used) == 1) found[n].used = ~0ull;
        else found[n].used <<= 20;
        at = strchr(at, ',');
        if (at) at++;
        else { n++; break; }
    }
    if (n > *count) return *count = n, TOO_SMALL;
    *count = n;
    if (n) memcpy(to, found, n * sizeof *found);
    return OK;
}
