/* What a program does to the files of one folder, written down in order; and a disk that fails on request.

   Preloaded (LD_PRELOAD). Environment:
     DISK_FOLDER   only files below this folder matter
     DISK_LOG      the file that each operation is appended to
     DISK_FAIL     "<n>:<errno>[:<times>]": the n-th write or sync (from 1) and the ones after it, `times` in all, fail
                   with that errno; a write fails after half of its bytes, as a full disk's does

   A record: 1 byte operation, 2 bytes length of the name, 8 bytes offset, 8 bytes length of the data, name, data; native
   byte order. Operations: 'C' created, 'W' written, 'T' cut to a length (the offset), 'S' synced, 'U' unlinked, 'F' failed. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#undef open
#undef open64
#undef openat
#undef openat64
#undef pwrite
#undef pwrite64
#undef ftruncate
#undef ftruncate64

#define MOST 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *names[MOST];
static char folder[4096];
static size_t folder_length;
static int log_fd = -1;
static long fail_at, fail_errno, fail_times = 1, count;

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_unlink)(const char *);

__attribute__((constructor)) static void begin(void) {
    real_open = dlsym(RTLD_NEXT, "open64");
    if (!real_open) real_open = dlsym(RTLD_NEXT, "open");
    real_openat = dlsym(RTLD_NEXT, "openat64");
    if (!real_openat) real_openat = dlsym(RTLD_NEXT, "openat");
    real_close = dlsym(RTLD_NEXT, "close");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    if (!real_pwrite) real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    if (!real_ftruncate) real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    const char *where = getenv("DISK_FOLDER"), *to = getenv("DISK_LOG"), *fail = getenv("DISK_FAIL");
    if (where) {
        snprintf(folder, sizeof folder, "%s/", where);
        folder_length = strlen(folder);
    }
    if (to) log_fd = real_open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fail) sscanf(fail, "%ld:%ld:%ld", &fail_at, &fail_errno, &fail_times);
}

static void note(char operation, const char *name, uint64_t offset, const void *data, uint64_t length) {
    if (log_fd < 0) return;
    char head[19];
    uint16_t size = (uint16_t)strlen(name);
    head[0] = operation;
    memcpy(head + 1, &size, 2);
    memcpy(head + 3, &offset, 8);
    memcpy(head + 11, &length, 8);
    struct iovec parts[3] = {{head, sizeof head}, {(void *)name, size}, {(void *)data, length}};
    /* One appending call, so that records of several processes do not mix. */
    if (writev(log_fd, parts, length ? 3 : 2) < 0) abort();
}

static const char *named(int fd) { return fd >= 0 && fd < MOST ? names[fd] : NULL; }

/* Whether the operation that comes now is to fail: the file of acknowledgements never does. Called with the lock held. */
static int fails(const char *name) {
    if (!strcmp(name, "acks")) return 0;
    count++;
    if (!fail_at || count < fail_at || count >= fail_at + fail_times) return 0;
    return (int)fail_errno;
}

static int opened(int fd, const char *path, int flags, int there) {
    if (fd < 0 || fd >= MOST) return fd;
    char whole[4096];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, whole, sizeof whole - 1);
    (void)path;
    if (n <= 0) return fd;
    whole[n] = 0;
    pthread_mutex_lock(&lock);
    free(names[fd]);
    names[fd] = NULL;
    if (folder_length && !strncmp(whole, folder, folder_length) && !strstr(whole, "-shm")) {
        names[fd] = strdup(whole + folder_length);
        if (!there) note('C', names[fd], 0, NULL, 0);
        if (flags & O_TRUNC) note('T', names[fd], 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

static int is_there(int at, const char *path) {
    struct stat found;
    return fstatat(at, path, &found, 0) == 0;
}

static int open_any(const char *path, int flags, mode_t mode) {
    int there = !(flags & O_CREAT) || is_there(AT_FDCWD, path);
    return opened(real_open(path, flags, mode), path, flags, there);
}

#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode = va_arg(rest, mode_t);                                                                                   \
        va_end(rest);                                                                                                  \
    }

int open(const char *path, int flags, ...) { MODE return open_any(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_any(path, flags, mode); }

int openat(int at, const char *path, int flags, ...) {
    MODE int there = !(flags & O_CREAT) || is_there(at, path);
    return opened(real_openat(at, path, flags, mode), path, flags, there);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE int there = !(flags & O_CREAT) || is_there(at, path);
    return opened(real_openat(at, path, flags, mode), path, flags, there);
}

int close(int fd) {
    if (named(fd)) {
        pthread_mutex_lock(&lock);
        free(names[fd]);
        names[fd] = NULL;
        pthread_mutex_unlock(&lock);
    }
    return real_close(fd);
}

static ssize_t write_any(int fd, const void *data, size_t length, off_t offset, int here) {
    pthread_mutex_lock(&lock);
    int error = fails(names[fd]);
    off_t at = here ? lseek(fd, 0, SEEK_CUR) : offset;
    if (here) {
        int flags = fcntl(fd, F_GETFL);
        if (flags & O_APPEND) at = lseek(fd, 0, SEEK_END);
    }
    ssize_t done = 0;
    size_t most = error ? length / 2 : length;
    if (most) done = here ? real_write(fd, data, most) : real_pwrite(fd, data, most, offset);
    if (done > 0) note('W', names[fd], (uint64_t)at, data, (uint64_t)done);
    if (error) {
        note('F', names[fd], (uint64_t)error, NULL, 0);
        done = -1;
    }
    pthread_mutex_unlock(&lock);
    if (error) errno = error;
    return done;
}

ssize_t write(int fd, const void *data, size_t length) {
    return named(fd) ? write_any(fd, data, length, 0, 1) : real_write(fd, data, length);
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    return named(fd) ? write_any(fd, data, length, offset, 0) : real_pwrite(fd, data, length, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset) { return pwrite(fd, data, length, offset); }

static int cut_any(int fd, off_t length) {
    if (!named(fd)) return real_ftruncate(fd, length);
    pthread_mutex_lock(&lock);
    int result = real_ftruncate(fd, length);
    if (!result) note('T', names[fd], (uint64_t)length, NULL, 0);
    pthread_mutex_unlock(&lock);
    return result;
}
int ftruncate(int fd, off_t length) { return cut_any(fd, length); }
int ftruncate64(int fd, off_t length) { return cut_any(fd, length); }

static int sync_any(int fd, int (*real)(int)) {
    if (!named(fd)) return real(fd);
    pthread_mutex_lock(&lock);
    int error = fails(names[fd]);
    /* What a failed sync leaves behind is anybody's guess: it counts as none. */
    int result = error ? -1 : real(fd);
    note(result ? 'F' : 'S', names[fd], (uint64_t)error, NULL, 0);
    pthread_mutex_unlock(&lock);
    if (error) errno = error;
    return result;
}
int fsync(int fd) { return sync_any(fd, real_fsync); }
int fdatasync(int fd) { return sync_any(fd, real_fdatasync); }

int unlink(const char *path) {
    int result = real_unlink(path);
    if (!result && folder_length && !strncmp(path, folder, folder_length) && !strstr(path, "-shm")) {
        pthread_mutex_lock(&lock);
        note('U', path + folder_length, 0, NULL, 0);
        pthread_mutex_unlock(&lock);
    }
    return result;
}
