#include "binding/file_lock.h"

#ifdef _WIN32
#include <uv.h>
#include <windows.h>
#else
#include <sys/file.h>

#include <cerrno>
#endif

Napi::Value binding::lock_file(const Napi::CallbackInfo & info) {
    const int fd = info[0].As<Napi::Number>().Int32Value();
#ifdef _WIN32
    OVERLAPPED at = {};
    const bool is_ours =
        LockFileEx((HANDLE) uv_get_osfhandle(fd), LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at) ||
        GetLastError() != ERROR_LOCK_VIOLATION;
#else
    // some network file systems have no locks
    const bool is_ours = flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
#endif
    return Napi::Boolean::New(info.Env(), is_ours);
}
