// What a thread tells of itself by one system call, and sets by another: each is one entry of a table. The visit asks
// for all of them, images hold those that are not as usual, and the restorer sets them.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace migrate {

struct Attribute {
  uint32_t id;       ///< in images, for ever
  const char* name;  ///< "its ..."
  long get;          ///< the call that tells it
  std::array<uint64_t, 5> get_args;
  bool by_address;  ///< the kernel writes it to the address that stands for kValue; else it is the call's result
  uint64_t usual;   ///< as a new program has it
  uint64_t most;    ///< more, no kernel answers; of results at most 127
  long set;         ///< kSetApart: by a call of its own kind
  std::array<uint64_t, 5> set_args;  ///< with kValue
  uint64_t settable = 0;             ///< if not 0: a value without this bit is not the thread's to set, nor told; and
                                     ///< it is set without it
};

inline constexpr long kSetApart = -1;
/// Together: set_mempolicy(2).
inline constexpr uint32_t kMemoryPolicy = 3, kMemoryPolicyNodes = 4;

/// Among arguments: the value, or where it is to be written.
inline constexpr uint64_t kAttributeValue = ~uint64_t{0};

/// Of each thread.
std::span<const Attribute> thread_attributes();
const Attribute* thread_attribute(uint32_t id);

/// `args` with `value` in place of kAttributeValue.
std::array<uint64_t, 5> with_value(std::array<uint64_t, 5> args, uint64_t value);

}  // namespace migrate
