/* A libnvidia-ml.so.1 without a GPU: what a script says, at the time of a virtual clock.
 *
 * The script is `struct control`, in a file that the environment variable FAKE_NVML names and that is mapped here and in
 * the test (`control.py` mirrors it, `test_nvml_abi.py` compares the two). Time passes when the test writes `now_s`.
 * The state of a device is a list of moments, each of which lasts until the next; counters are integrals over them:
 * energy in steps of `step_s` as real boards show it, and nanoseconds of each clocks event reason.
 *
 * A fault strikes a symbol ("*": every symbol but init, shutdown and error string; "field 186": one field) after so many
 * calls: it returns an error code, or hangs until the test lets go. A symbol is missing when the linker hides it.
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOMENTS = 64, DEVICES = 4, PROCESSES = 8, FAULTS = 16 };
enum { STEPS, FROZEN, BACKWARDS, RESET }; /* what the energy counter does, the last three from `odd_at_s` on */
enum { OK, UNINITIALIZED, INVALID, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9 };
enum { HANG = -1, AMPERE = 7 };
#define SINCE_LOAD_J 1e6 /* used before the script starts: the counter counts from the driver's load */

struct moment {
    double from_s;
    uint64_t reasons, used_bytes, process_bytes[PROCESSES];
    uint32_t pids[PROCESSES], processes, power_mw, sm_mhz, mem_mhz, temperature_c;
};
struct device {
    char uuid[96], name[96], bus_id[32];
    uint64_t total_bytes;
    double step_s, odd_at_s;
    uint32_t architecture, capability[2], limit_mw, counter, moments;
    struct moment moment[MOMENTS];
};
struct fault { char symbol[80]; int32_t code; uint32_t after, calls; };
struct control {
    volatile double now_s;
    volatile uint32_t let_go, devices, faults, latency_us;
    struct fault fault[FAULTS];
    struct device device[DEVICES];
};
/* NVML's own, as in nvml.h */
struct memory { uint64_t total, free, used; };
struct memory_v2 { uint32_t version; uint64_t total, reserved, free, used; };
struct process { uint32_t pid; uint64_t bytes; uint32_t gpu_instance, compute_instance; };
struct utilization { uint32_t gpu, memory; };
struct temperature { uint32_t version, sensor; int32_t celsius; };
struct pci { char legacy[16]; uint32_t domain, bus, device, id, subsystem; char bus_id[32]; };
struct field { uint32_t id, scope; int64_t timestamp, latency_us; uint32_t type, code; union { double d; uint32_t ui; uint64_t ull; } value; };

static struct control *script;
static int users;

static int struck(const char *symbol, int any)
{
    struct control *control = script; /* a hanging call stays with the script it came under */
    for (uint32_t i = 0; i < control->faults; i++) {
        struct fault *fault = &control->fault[i];
        if ((strcmp(fault->symbol, symbol) && (!any || strcmp(fault->symbol, "*"))) || fault->calls++ < fault->after) continue;
        if (fault->code != HANG) return fault->code;
        while (!control->let_go) usleep(1000);
    }
    return OK;
}

static int entered(const char *symbol)
{
    if (!users) return UNINITIALIZED;
    if (script->latency_us) usleep(script->latency_us);
    return struck(symbol, 1);
}
#define ENTER do { int code = entered(__func__); if (code) return code; } while (0)

/* The integral of what `of` gives, from the script's start to `until_s`. */
static double integral(struct device *device, double until_s, double (*of)(struct moment *, uint64_t), uint64_t mask)
{
    double sum = 0;
    for (uint32_t i = 0; i < device->moments; i++) {
        double from = device->moment[i].from_s, to = i + 1 < device->moments ? device->moment[i + 1].from_s : until_s;
        if (to > until_s) to = until_s;
        if (to > from) sum += (to - from) * of(&device->moment[i], mask);
    }
    return sum;
}
static double watts(struct moment *moment, uint64_t mask) { (void)mask; return moment->power_mw / 1e3; }
static double limited(struct moment *moment, uint64_t mask) { return (moment->reasons & mask) != 0; }

static struct moment *now(struct device *device)
{
    uint32_t i = 0;
    while (i + 1 < device->moments && device->moment[i + 1].from_s <= script->now_s) i++;
    return &device->moment[i];
}

static uint64_t energy_mj(struct device *device)
{
    double at = device->step_s > 0 ? (uint64_t)(script->now_s / device->step_s + 1e-9) * device->step_s : script->now_s;
    double odd = device->odd_at_s, joules = SINCE_LOAD_J;
    if (at <= odd || device->counter == STEPS) joules += integral(device, at, watts, 0);
    else if (device->counter == FROZEN) joules += integral(device, odd, watts, 0);
    else if (device->counter == BACKWARDS) joules += integral(device, at, watts, 0) - 1000;
    else joules = integral(device, at, watts, 0) - integral(device, odd, watts, 0);
    return (uint64_t)(joules * 1e3);
}

/* nvmlDeviceGetPowerUsage is an average over one second from Ampere on (NVML reference). */
static uint32_t power_mw(struct device *device)
{
    double at = script->now_s;
    if (device->architecture < AMPERE || at < 1) return now(device)->power_mw;
    return (uint32_t)((integral(device, at, watts, 0) - integral(device, at - 1, watts, 0)) * 1e3);
}

static int text(char *to, uint32_t room, const char *from)
{
    if (strlen(from) >= room) return TOO_SMALL;
    strcpy(to, from);
    return OK;
}

int nvmlInitWithFlags(uint32_t flags)
{
    (void)flags;
    const char *path = getenv("FAKE_NVML");
    int file = path ? open(path, O_RDWR) : -1;
    if (file < 0) return NO_DRIVER;
    void *mapped = mmap(NULL, sizeof *script, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return NO_DRIVER;
    script = mapped; /* one that was mapped before stays: a call may still hang in it */
    int code = struck(__func__, 0);
    if (!code) users++;
    return code;
}
int nvmlShutdown(void) { if (!users) return UNINITIALIZED; users--; return OK; }
const char *nvmlErrorString(int code)
{
    static const char *words[] = {"Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions"};
    return code >= 0 && code < 5 ? words[code] : code == 15 ? "GPU is lost" : "Unknown Error";
}
int fakeUsers(void) { return users; }
uint64_t fakeSize(int what)
{
    uint64_t sizes[] = {sizeof(struct control), sizeof(struct device), sizeof(struct moment), sizeof(struct fault), sizeof(struct memory),
        sizeof(struct memory_v2), sizeof(struct process), sizeof(struct utilization), sizeof(struct temperature), sizeof(struct pci), sizeof(struct field)};
    return sizes[what];
}

int nvmlSystemGetDriverVersion(char *to, uint32_t room) { ENTER; return text(to, room, "580.65.06"); }
int nvmlSystemGetNVMLVersion(char *to, uint32_t room) { ENTER; return text(to, room, "13.580.65.06"); }
int nvmlSystemGetCudaDriverVersion_v2(int *to) { ENTER; *to = 13000; return OK; }
int nvmlDeviceGetCount_v2(uint32_t *to) { ENTER; *to = script->devices; return OK; }
int nvmlDeviceGetHandleByIndex_v2(uint32_t index, struct device **to)
{
    ENTER;
    if (index >= script->devices) return INVALID;
    *to = &script->device[index];
    return OK;
}
static int by(size_t offset, const char *wanted, struct device **to)
{
    for (uint32_t i = 0; i < script->devices; i++)
        if (!strcmp((char *)&script->device[i] + offset, wanted)) { *to = &script->device[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **to) { ENTER; return by(offsetof(struct device, uuid), uuid, to); }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, struct device **to) { ENTER; return by(offsetof(struct device, bus_id), bus, to); }
int nvmlDeviceGetUUID(struct device *device, char *to, uint32_t room) { ENTER; return text(to, room, device->uuid); }
int nvmlDeviceGetName(struct device *device, char *to, uint32_t room) { ENTER; return text(to, room, device->name); }
int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci *to)
{
    ENTER;
    memset(to, 0, sizeof *to);
    return sscanf(device->bus_id, "%x:%x:%x", &to->domain, &to->bus, &to->device) == 3 ? text(to->bus_id, 32, device->bus_id) : INVALID;
}
int nvmlDeviceGetArchitecture(struct device *device, uint32_t *to) { ENTER; *to = device->architecture; return OK; }
int nvmlDeviceGetCudaComputeCapability(struct device *device, int *major, int *minor)
{
    ENTER;
    *major = (int)device->capability[0];
    *minor = (int)device->capability[1];
    return OK;
}
int nvmlDeviceGetMemoryInfo(struct device *device, struct memory *to)
{
    ENTER;
    *to = (struct memory){device->total_bytes, device->total_bytes - now(device)->used_bytes, now(device)->used_bytes};
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory_v2 *to)
{
    ENTER;
    *to = (struct memory_v2){to->version, device->total_bytes, 0, device->total_bytes - now(device)->used_bytes, now(device)->used_bytes};
    return OK;
}
int nvmlDeviceGetPowerUsage(struct device *device, uint32_t *to) { ENTER; *to = power_mw(device); return OK; }
int nvmlDeviceGetEnforcedPowerLimit(struct device *device, uint32_t *to) { ENTER; *to = device->limit_mw; return OK; }
int nvmlDeviceGetTotalEnergyConsumption(struct device *device, uint64_t *to) { ENTER; *to = energy_mj(device); return OK; }
int nvmlDeviceGetFieldValues(struct device *device, int count, struct field *fields)
{
    ENTER;
    for (struct field *field = fields; field < fields + count; field++) {
        char name[24];
        snprintf(name, sizeof name, "field %u", field->id);
        field->code = struck(name, 0);
        field->type = 3; /* unsigned long long, but for power */
        uint64_t mask = field->id == 74 ? 0x04 : field->id == 269 ? 0x20 : field->id == 270 ? 0x40 : field->id == 271 ? 0x80 : 0;
        if (mask) field->value.ull = (uint64_t)(integral(device, script->now_s, limited, mask) * 1e9 + 0.5);
        else if (field->id == 83) field->value.ull = energy_mj(device);
        else if (field->id == 185 || field->id == 186) {
            field->type = 1;
            field->value.ui = field->id == 185 ? power_mw(device) : now(device)->power_mw;
        } else field->code = NOT_SUPPORTED;
    }
    return OK;
}
static int clock_mhz(struct moment *moment, uint32_t type, uint32_t *to)
{
    if (type > 2) return NOT_SUPPORTED; /* graphics, SM, memory */
    *to = type == 2 ? moment->mem_mhz : moment->sm_mhz;
    return OK;
}
int nvmlDeviceGetClockInfo(struct device *device, uint32_t type, uint32_t *to) { ENTER; return clock_mhz(now(device), type, to); }
int nvmlDeviceGetMaxClockInfo(struct device *device, uint32_t type, uint32_t *to) { ENTER; return clock_mhz(&device->moment[0], type, to); }
int nvmlDeviceGetCurrentClocksEventReasons(struct device *device, uint64_t *to) { ENTER; *to = now(device)->reasons; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *device, uint64_t *to) { ENTER; *to = now(device)->reasons; return OK; }
int nvmlDeviceGetTemperature(struct device *device, uint32_t sensor, uint32_t *to) { ENTER; if (sensor) return INVALID; *to = now(device)->temperature_c; return OK; }
int nvmlDeviceGetTemperatureV(struct device *device, struct temperature *to)
{
    ENTER;
    if (to->sensor) return INVALID;
    to->celsius = (int32_t)now(device)->temperature_c;
    return OK;
}
int nvmlDeviceGetUtilizationRates(struct device *device, struct utilization *to) { ENTER; *to = (struct utilization){now(device)->processes ? 100 : 0, 0}; return OK; }
int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, uint32_t *count, struct process *to)
{
    ENTER;
    struct moment *moment = now(device);
    uint32_t room = *count;
    *count = moment->processes;
    if (moment->processes > room) return TOO_SMALL;
    for (uint32_t i = 0; i < moment->processes; i++)
        to[i] = (struct process){moment->pids[i], moment->process_bytes[i], UINT32_MAX, UINT32_MAX};
    return OK;
}
int nvmlDeviceGetPersistenceMode(struct device *device, uint32_t *to) { ENTER; (void)device; *to = 1; return OK; }
int nvmlDeviceGetMigMode(struct device *device, uint32_t *current, uint32_t *pending) { ENTER; (void)device; *current = *pending = 0; return OK; }
int nvmlDeviceIsMigDeviceHandle(struct device *device, uint32_t *to) { ENTER; (void)device; *to = 0; return OK; }
int nvmlDeviceGetCpuAffinity(struct device *device, uint32_t words, unsigned long *to) { ENTER; (void)device; memset(to, 0, words * sizeof *to); *to = 3; return OK; }
int nvmlDeviceSetGpuLockedClocks(struct device *device, uint32_t low, uint32_t high) { ENTER; (void)device, (void)low, (void)high; return NO_PERMISSION; }
int nvmlDeviceResetGpuLockedClocks(struct device *device) { ENTER; (void)device; return NO_PERMISSION; }
