/*
 * clock_gettime() that fails for our module in a process's main thread, as long as the file that
 * BROKEN_CLOCK names is there.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>


static char  *broken;


/* nginx drops its environment later on */
__attribute__((constructor))
static void
note_file(void)
{
    char  *name = getenv("BROKEN_CLOCK");

    if (name != NULL) {
        broken = strdup(name);
    }
}


int
clock_gettime(clockid_t id, struct timespec *ts)
{
    int      error = errno;
    Dl_info  info;

    if (broken != NULL && getpid() == (pid_t) syscall(SYS_gettid)
        && dladdr(__builtin_return_address(0), &info) && info.dli_fname != NULL
        && strstr(info.dli_fname, "ngx_http_consul_module") != NULL
        && access(broken, F_OK) == 0)
    {
        errno = EINVAL;
        return -1;
    }

    errno = error;

    return syscall(SYS_clock_gettime, id, ts);
}
