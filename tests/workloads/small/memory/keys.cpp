// Memory protection keys.
#include "small.h"

namespace {

/// A mapping with a key of its own.
struct Keyed {
  int key;
  char* at;
};

Keyed keyed(unsigned rights) {
  const int key = pkey_alloc(0, rights);
  if (key == -1) throw NotHere("the processor has no protection keys");
  char* at = area(2);
  fill(at, 2, 2);
  must(pkey_mprotect(at, 2 * kPage, PROT_READ | PROT_WRITE, key), "pkey_mprotect");
  return {key, at};
}

}  // namespace

WORKLOAD(memory, key_denies_access) {
  const Keyed k = keyed(PKEY_DISABLE_ACCESS);
  return [=] {
    expect_equal(pkey_get(k.key), PKEY_DISABLE_ACCESS, "the rights of the key");
    expect(!readable(k.at), "memory behind a key can be read");
    pkey_set(k.key, 0);
    const bool same = k.at[9] == static_cast<char>(pattern(9, 2));
    pkey_set(k.key, PKEY_DISABLE_ACCESS);
    expect(same, "memory behind a key differs");
  };
}

WORKLOAD(memory, key_denies_writing) {
  const Keyed k = keyed(PKEY_DISABLE_WRITE);
  return [=] {
    expect_equal(pkey_get(k.key), PKEY_DISABLE_WRITE, "the rights of the key");
    expect(readable(k.at) && !writable(k.at), "memory behind a key can be written");
  };
}

WORKLOAD(memory, keys_allocated) {
  const Keyed one = keyed(0);
  const Keyed other = keyed(0);
  pkey_free(one.key);  // the one that is free is given out next
  return [=] {
    const int next = pkey_alloc(0, 0);
    pkey_free(next);
    expect_equal(next, one.key, "the key that is given out next");
    expect_filled(other.at, 2, 2, "memory with a key");
  };
}
