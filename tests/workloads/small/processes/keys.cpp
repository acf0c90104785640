// keyrings(7): what is the host's is left to it, what is the program's is refused.
#include <linux/keyctl.h>
#include <sys/syscall.h>

#include "small.h"

namespace {

/// Also where the kernel has no keys, or a filter says so.
void have_keys(long result, const std::string& what) {
  if (result == -1 && (errno == ENOSYS || errno == EOPNOTSUPP)) throw NotHere(what + ": there are no keys");
  allowed(result, what);
}

long keyctl(int operation, long a = 0, long b = 0, long c = 0) { return syscall(SYS_keyctl, operation, a, b, c); }

/// Instead of that of whoever started us.
void own_session() { have_keys(keyctl(KEYCTL_JOIN_SESSION_KEYRING), "KEYCTL_JOIN_SESSION_KEYRING"); }

long add_key(const char* type, const char* name, const std::string& value, int keyring) {
  const long serial = syscall(SYS_add_key, type, name, value.empty() ? nullptr : value.data(), value.size(), keyring);
  have_keys(serial, "add_key");
  return serial;
}

Verify has_value(long key, const std::string& value) {
  return [key, value] {
    char is[16] = {};
    const long n = must(keyctl(KEYCTL_READ, key, reinterpret_cast<long>(is), sizeof is), "KEYCTL_READ");
    expect(std::string(is, static_cast<size_t>(n)) == value, "a key has another value");
  };
}

}  // namespace

WORKLOAD(processes, keys_of_session) {
  own_session();
  return has_value(add_key("user", "migrate-test", "secret", KEY_SPEC_SESSION_KEYRING), "secret");
}

WORKLOAD(processes, keys_of_process) {
  return has_value(add_key("user", "migrate-test", "secret", KEY_SPEC_PROCESS_KEYRING), "secret");
}

// As a login does (pam_keyinit(8)), and an init for a service.
WORKLOAD(processes, keyring_of_session) {
  own_session();
  have_keys(keyctl(KEYCTL_LINK, KEY_SPEC_USER_KEYRING, KEY_SPEC_SESSION_KEYRING), "KEYCTL_LINK");
  add_key("user", "invocation_id", "0123456789abcdef", KEY_SPEC_SESSION_KEYRING);
  return [] {
    // Of its own, also where it is another.
    const long key = add_key("user", "of-a-check", "x", KEY_SPEC_SESSION_KEYRING);
    has_value(key, "x")();
    must(keyctl(KEYCTL_UNLINK, key, KEY_SPEC_SESSION_KEYRING), "KEYCTL_UNLINK");
  };
}

// Empty ones hold nothing that could be lost.
WORKLOAD(processes, empty_keyrings) {
  for (const int one : {KEY_SPEC_THREAD_KEYRING, KEY_SPEC_PROCESS_KEYRING})
    have_keys(keyctl(KEYCTL_GET_KEYRING_ID, one, 1), "KEYCTL_GET_KEYRING_ID");
  return [] {
    for (const int one : {KEY_SPEC_THREAD_KEYRING, KEY_SPEC_PROCESS_KEYRING})
      must(keyctl(KEYCTL_GET_KEYRING_ID, one, 1), "KEYCTL_GET_KEYRING_ID");
  };
}
