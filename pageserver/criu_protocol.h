// CRIU's page server protocol, as of CRIU 4.2 (32-byte requests; in 3.17 they had 24): how a dump's pages go to an
// image folder on another machine. Numbers are little-endian. The session:
//
//   client                               server
//   OPEN2 (memory)                       u8: whether the parent folder has pages of it
//   ADD_F | flags (address, pages)       -            flags: 4 = contents follow, 1 = as in the parent folder
//   ... and the contents of the pages
//   CLOSE or FORCE_CLOSE                 i32: 0 when all is stored
//   PARENT (memory), at any time         i32: 1 if the parent folder has pages of it, else 0
//
// The older ADD (contents), HOLE (in the parent) and OPEN (no answer) mean the same.
//
// Of a lazy dump (`dump --lazy-pages`), which keeps its pages until somebody asks for them, the same way up:
//
//   GET (address, pages; task)           ADD_F | 4 (address, pages; task), and the contents: in the order of the
//                                        requests. CRIU's server may give fewer pages, never its client.
//   CLOSE or FORCE_CLOSE                 i32: 0. All that is missed has come: the dumped tree is not needed any more.
//
// There dst_id is the task's pid as it is; elsewhere the kind of memory stands in its lowest byte.
//
// Within that, two of ours find out whether they speak of the same dump (pids alone do not tell): PARENT of kLazyDump
// is answered by 1, and PARENT of lazy_dump(run id) by whether it is that dump. CRIU's server has 0 for both. Who has
// asked so is told of a task that was killed while its pages were kept: ADD_F without flags, 0 pages.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/memory/page_io.h"

namespace migrate {

struct CriuRequest {
  enum class Command : uint16_t {
    add = 1,
    hole = 2,
    open = 3,
    open2 = 4,
    parent = 5,
    add_f = 6,
    get = 7,
    close = 0x1023,
    force_close = 0x1024
  };
  static constexpr uint16_t kInParent = 1, kLazy = 2, kPresent = 4;  ///< flags: those of pagemap entries

  Command command = Command::close;
  uint16_t flags = 0;
  uint64_t pages = 0;
  uint64_t address = 0;
  MemoryId memory;  ///< of open, open2, parent and get; of an add_f that answers a get
};

inline constexpr size_t kCriuRequestSize = 32;

inline constexpr MemoryId kLazyDump{MemoryId::Kind::shmem, 0x4d494752};
/// `run_id`: of the dump's inventory.
MemoryId lazy_dump(std::string_view run_id);

std::array<std::byte, kCriuRequestSize> encode_criu_request(const CriuRequest& request);
/// The answer to a GET, which names its task as that does.
std::array<std::byte, kCriuRequestSize> encode_criu_answer(const CriuRequest& answer);
/// Throws Corrupt: unknown command, flags or memory kind, an address or count out of range.
CriuRequest decode_criu_request(std::span<const std::byte, kCriuRequestSize> bytes);
/// Throws Corrupt if it is none.
CriuRequest decode_criu_answer(std::span<const std::byte, kCriuRequestSize> bytes);

}  // namespace migrate
