// The calls of userfaultfd(2) on memory of another process, with what they may come to as values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "core/base/types.h"

namespace migrate {

inline RemoteRange range_of(uint64_t start, uint64_t bytes) { return {RemoteAddr(start), RemoteAddr(start + bytes)}; }

enum class Filled : uint8_t {
  done,          ///< `bytes` of it, at least a page
  exists,        ///< the first page is there already; nobody was woken
  changing,      ///< an event is to be read, or its task has not run since it was: read on, apply, try again
  unregistered,  ///< not within one mapping that is registered
  dead,          ///< the memory is gone
};

struct FillResult {
  Filled outcome = Filled::done;
  uint64_t bytes = 0;
};

/// UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_POISON; who waits for the pages is woken. Other failures (no memory is left)
/// throw Error. A copy removes a guard region (MADV_GUARD_INSTALL); zeros do not: `exists`.
FillResult copy_pages(int userfaultfd, uint64_t address, std::span<const std::byte> data);
FillResult zero_pages(int userfaultfd, uint64_t address, uint64_t bytes);
FillResult poison_pages(int userfaultfd, uint64_t address, uint64_t bytes);

/// UFFDIO_CONTINUE: the task sees the page that its shared object has there. nullopt: the object has none, or ends
/// before.
std::optional<FillResult> show_page(int userfaultfd, uint64_t address);

/// Whether all of a range of private anonymous memory is one mapping, and registered: `exists`, else `unregistered`;
/// while events are outstanding `changing`. Changes nothing. Linux 5.13.
Filled ask_registered(int userfaultfd, RemoteRange range);

/// Whoever waits for a page of the range touches it again.
void wake(int userfaultfd, RemoteRange range) noexcept;

/// False: not all of the range can be unregistered, since a mapping in it is of another kind or none is there.
bool unregister(int userfaultfd, RemoteRange range) noexcept;

/// Whether events are outstanding (`changing`) or the memory is `dead`; else `unregistered`. Changes nothing: asks for
/// a page at the end of user space, where none is.
Filled probe(int userfaultfd);

}  // namespace migrate
