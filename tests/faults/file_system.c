/* A file system that lacks something, as LD_PRELOAD: calls on paths below $SHIM_ROOT fail with the errno in a variable.

   SHIM_FLOCK, SHIM_FSYNC, SHIM_FSYNC_FOLDER, SHIM_CHMOD, SHIM_UTIME, SHIM_LINK, SHIM_SYMLINK, SHIM_MMAP_SHARED,
   SHIM_RENAME_OVER (only if the target exists). Reads of paths that begin with SHIM_STALL last SHIM_STALL_S seconds. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <utime.h>

#define REAL(name, type, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

static int is_below(const char *path) {
    const char *root = getenv("SHIM_ROOT");
    return root && path && strncmp(path, root, strlen(root)) == 0;
}

static int path_of(int folder, const char *path, char *full) {
    char link[64];
    if (path && path[0] == '/') { snprintf(full, PATH_MAX, "%s", path); return 1; }
    if (folder == AT_FDCWD) { if (!getcwd(full, PATH_MAX)) return 0; }
    else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, full, PATH_MAX - 1);
        if (length < 0) return 0;
        full[length] = 0;
    }
    if (path && *path) { size_t used = strlen(full); snprintf(full + used, PATH_MAX - used, "/%s", path); }
    return 1;
}

/* Return 1 and set errno if the call named by the variable fails on this path. */
static int fails(const char *variable, int folder, const char *path) {
    const char *number = getenv(variable);
    char full[PATH_MAX];
    int before = errno;
    if (!number || !path_of(folder, path, full) || !is_below(full)) { errno = before; return 0; }
    errno = atoi(number);
    return 1;
}

int flock(int file, int what) {
    if (!(what & LOCK_UN) && fails("SHIM_FLOCK", file, NULL)) return -1;
    return REAL("flock", int, int, int)(file, what);
}

static int fsync_as(const char *name, int file) {
    struct stat state;
    int folder = !fstat(file, &state) && S_ISDIR(state.st_mode);
    if (fails(folder ? "SHIM_FSYNC_FOLDER" : "SHIM_FSYNC", file, NULL)) return -1;
    return REAL(name, int, int)(file);
}
int fsync(int file) { return fsync_as("fsync", file); }
int fdatasync(int file) { return fsync_as("fdatasync", file); }

int chmod(const char *path, mode_t mode) {
    return fails("SHIM_CHMOD", AT_FDCWD, path) ? -1 : REAL("chmod", int, const char *, mode_t)(path, mode);
}
int fchmod(int file, mode_t mode) {
    return fails("SHIM_CHMOD", file, NULL) ? -1 : REAL("fchmod", int, int, mode_t)(file, mode);
}
int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    if (fails("SHIM_CHMOD", folder, path)) return -1;
    return REAL("fchmodat", int, int, const char *, mode_t, int)(folder, path, mode, flags);
}

int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    if (fails("SHIM_UTIME", folder, path)) return -1;
    return REAL("utimensat", int, int, const char *, const struct timespec *, int)(folder, path, times, flags);
}
int futimens(int file, const struct timespec times[2]) {
    return fails("SHIM_UTIME", file, NULL) ? -1 : REAL("futimens", int, int, const struct timespec *)(file, times);
}

int link(const char *from, const char *to) {
    return fails("SHIM_LINK", AT_FDCWD, to) ? -1 : REAL("link", int, const char *, const char *)(from, to);
}
int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    if (fails("SHIM_LINK", to_folder, to)) return -1;
    return REAL("linkat", int, int, const char *, int, const char *, int)(from_folder, from, to_folder, to, flags);
}
int symlink(const char *content, const char *path) {
    return fails("SHIM_SYMLINK", AT_FDCWD, path) ? -1 : REAL("symlink", int, const char *, const char *)(content, path);
}
int symlinkat(const char *content, int folder, const char *path) {
    if (fails("SHIM_SYMLINK", folder, path)) return -1;
    return REAL("symlinkat", int, const char *, int, const char *)(content, folder, path);
}

int rename(const char *from, const char *to) {
    if (!faccessat(AT_FDCWD, to, F_OK, AT_SYMLINK_NOFOLLOW) && fails("SHIM_RENAME_OVER", AT_FDCWD, to)) return -1;
    return REAL("rename", int, const char *, const char *)(from, to);
}

static int refuses_mapping(int flags, int file) {
    return file >= 0 && (flags & MAP_TYPE) != MAP_PRIVATE && fails("SHIM_MMAP_SHARED", file, NULL);
}
void *mmap(void *at, size_t length, int access, int flags, int file, off_t offset) {
    if (refuses_mapping(flags, file)) return MAP_FAILED;
    return REAL("mmap", void *, void *, size_t, int, int, int, off_t)(at, length, access, flags, file, offset);
}
void *mmap64(void *at, size_t length, int access, int flags, int file, off64_t offset) {
    if (refuses_mapping(flags, file)) return MAP_FAILED;
    return REAL("mmap64", void *, void *, size_t, int, int, int, off64_t)(at, length, access, flags, file, offset);
}

ssize_t read(int file, void *buffer, size_t count) {
    const char *stalled = getenv("SHIM_STALL");
    char full[PATH_MAX];
    if (stalled && path_of(file, NULL, full) && strncmp(full, stalled, strlen(stalled)) == 0) {
        struct timespec wait = {atoi(getenv("SHIM_STALL_S")), 0};
        while (nanosleep(&wait, &wait)) {}
    }
    return REAL("read", ssize_t, int, void *, size_t)(file, buffer, count);
}
