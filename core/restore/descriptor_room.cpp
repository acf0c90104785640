#include "core/restore/descriptor_room.h"

#include <set>
#include <string>

#include "core/base/error.h"
#include "core/files/image_tables.h"
#include "core/restore/shell.h"

namespace migrate {

DescriptorRoom find_descriptor_room(const ImageSet& images, size_t needed, size_t limit) {
  std::set<size_t> used;
  for (const uint32_t table : table_ids(images))
    for (const img::fdinfo_entry& e : read_table(images, table)) used.insert(e.fd());
  if (!used.empty() && *used.rbegin() >= limit) {
    throw Refusal("the tree has a descriptor with the number " + std::to_string(*used.rbegin()) +
                      ", and our own limit of open files is " + std::to_string(limit),
                  "raise that of this process (ulimit -Hn)");
  }
  const size_t above = used.empty() ? 0 : *used.rbegin() + 1;
  if (std::max<size_t>(kLowestFloor, above) + needed <= limit)
    return {static_cast<int>(std::max<size_t>(kLowestFloor, above)), INT_MAX};
  size_t free = 3;  // the standard descriptors are in use until the end
  for (const size_t number : used) {
    if (number >= free + needed) return {static_cast<int>(free), static_cast<int>(number)};
    free = std::max(free, number + 1);
  }
  throw Refusal("the descriptors of the tree leave no room for " + std::to_string(needed) +
                    " of ours below our own limit of open files, " + std::to_string(limit),
                "raise that of this process (ulimit -Hn)");
}

}  // namespace migrate
