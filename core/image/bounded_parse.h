// Parsing what a peer or an image says without letting it grow: two bytes on the wire can be an empty message of a
// hundred bytes in memory, so that 4 MiB would become hundreds.
#pragma once

#include <cstddef>
#include <span>

namespace google::protobuf {
class MessageLite;
}

namespace migrate {

/// What `bytes` may grow to: our own messages and images grow to six times their size at most.
constexpr size_t parse_budget(size_t bytes) { return (size_t{4} << 20) + 8 * bytes; }

/// Parses `bytes` into `message`. False if they do not parse, lack a required field, or would take more memory than
/// parse_budget(); then `message` has not grown beyond it either.
bool parse_bounded(google::protobuf::MessageLite& message, std::span<const std::byte> bytes);

}  // namespace migrate
