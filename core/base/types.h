// Types for the numbers this project juggles: pids, addresses in other address spaces, pages, bytes. All are plain
// values; converting between them is explicit, so that a remote address is never dereferenced here by accident.
#pragma once

#include <sys/types.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace migrate {

/// A number with a meaning of its own: no implicit conversion, no arithmetic.
template <class Tag, class Rep>
class Strong {
 public:
  constexpr Strong() = default;
  constexpr explicit Strong(Rep value) : value_(value) {}
  constexpr Rep get() const { return value_; }
  auto operator<=>(const Strong&) const = default;

 private:
  Rep value_{};
};

/// A process (thread-group leader) as this process's pid namespace numbers it. For display and /proc paths; what a task
/// *is*, is its pidfd.
using Pid = Strong<struct PidTag, pid_t>;
/// A thread, likewise.
using Tid = Strong<struct TidTag, pid_t>;

inline constexpr uint64_t kPageSize = 4096;
inline constexpr uint64_t kHugePageSize = 2 << 20;

/// What 4-level page tables reach of user space: no address is above, and no object is larger.
inline constexpr uint64_t kUserSpace = uint64_t{1} << 47;
/// Where mappings end: the last page is never given out.
inline constexpr uint64_t kUserEnd = kUserSpace - kPageSize;

/// PID_MAX_LIMIT on 64-bit.
inline constexpr pid_t kMaxPid = 1 << 22;

/// An address in another task's address space, in bytes.
class RemoteAddr {
 public:
  constexpr RemoteAddr() = default;
  constexpr explicit RemoteAddr(uint64_t value) : value_(value) {}
  constexpr uint64_t get() const { return value_; }
  constexpr RemoteAddr operator+(uint64_t bytes) const { return RemoteAddr(value_ + bytes); }
  constexpr uint64_t operator-(RemoteAddr other) const { return value_ - other.value_; }
  auto operator<=>(const RemoteAddr&) const = default;

 private:
  uint64_t value_ = 0;
};

/// A half-open range [start, end) of another task's addresses.
struct RemoteRange {
  RemoteAddr start;
  RemoteAddr end;
  constexpr uint64_t bytes() const { return end - start; }
  constexpr uint64_t pages() const { return bytes() / kPageSize; }
  constexpr bool contains(RemoteAddr a) const { return start <= a && a < end; }
  auto operator<=>(const RemoteRange&) const = default;
};

constexpr uint64_t page_floor(uint64_t v) { return v & ~(kPageSize - 1); }
constexpr uint64_t page_ceil(uint64_t v) { return page_floor(v + kPageSize - 1); }

}  // namespace migrate

template <class Tag, class Rep>
struct std::hash<migrate::Strong<Tag, Rep>> {
  size_t operator()(const migrate::Strong<Tag, Rep>& s) const noexcept { return std::hash<Rep>()(s.get()); }
};
