#include "image_records.h"

#include <array>
#include <cstdio>
#include <string>

#include "core/files/extended_attributes.h"
#include "core/files/file_owners.h"
#include "core/files/option_table.h"
#include "core/files/pipe.h"
#include "core/files/terminal_dump.h"
#include "core/files/unix_socket.h"
#include "core/image/magic.h"

namespace migrate::fuzz {
namespace {

struct Kind {
  const char* name;  ///< with a place for the number, if there is one
  uint32_t magic;
};

/// The order is that of pack_images.py.
constexpr std::array<Kind, 27> kKinds{{
    {"inventory.img", magic::kInventory},
    {"pstree.img", magic::kPstree},
    {"core-%u.img", magic::kCore},
    {"mm-%u.img", magic::kMm},
    {"fs-%u.img", magic::kFs},
    {"ids-%u.img", magic::kIds},
    {"files.img", magic::kFiles},
    {"fdinfo-%u.img", magic::kFdinfo},
    {"pagemap-%u.img", magic::kPagemap},
    {"pagemap-shmem-%u.img", magic::kPagemap},
    {"memfd.img", magic::kMemfdInode},
    {"pipes-data.img", magic::kPipesData},
    {"fifo-data.img", magic::kFifoData},
    {"migrate-pipes.img", kPipePacketsMagic},
    {"sk-queues.img", magic::kSkQueues},
    {"remap-fpath.img", magic::kRemapFpath},
    {"ghost-file-%x.img", magic::kGhostFile},
    {"timens-%u.img", magic::kTimens},
    {"filelocks.img", magic::kFileLocks},
    {"migrate-ext.img", magic::kMigrateExt},
    {"tty-info.img", magic::kTtyInfo},
    {"migrate-files.img", kFileOwnersMagic},
    {"migrate-senders.img", kPacketSendersMagic},
    {"migrate-sockets.img", kSocketsMagic},
    {"migrate-terminals.img", kTerminalsMagic},
    {"migrate-ctty.img", kControllingMagic},
    {"migrate-ghosts.img", kGhostAttributesMagic},
}};
constexpr uint8_t kRaw = 0x80;

}  // namespace

ImageSet images_from(const std::vector<Record>& records) {
  ImageSet images;
  for (const Record& r : records) {
    const size_t index = r.kind & ~kRaw;
    if (index >= kKinds.size()) continue;
    char name[64];
    std::snprintf(name, sizeof name, kKinds[index].name, r.id);
    ImageWriter writer = images.write(name, kKinds[index].magic);
    if ((r.kind & kRaw) == 0) {
      const auto size = static_cast<uint32_t>(r.payload.size());
      writer.raw(std::as_bytes(std::span(&size, 1)));
    }
    writer.raw(r.payload);
  }
  return images;
}

}  // namespace migrate::fuzz
