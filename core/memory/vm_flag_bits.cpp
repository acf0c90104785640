#include "core/memory/vm_flag_bits.h"

#include <bit>
#include <map>

#include "core/memory/vma.h"

namespace migrate {

VmFlagBits::VmFlagBits(const std::vector<Sample>& samples) {
  std::set<std::string> codes;
  for (const Sample& sample : samples) codes.insert(sample.letters.begin(), sample.letters.end());
  // By the bits that remain possible. Two codes with the same ones were seen together always.
  std::map<uint64_t, std::vector<std::string>> possible;
  for (const std::string& code : codes) {
    uint64_t bits = ~uint64_t{0};
    for (const Sample& sample : samples) bits &= sample.letters.contains(code) ? sample.word : ~sample.word;
    possible[bits].push_back(code);
  }
  for (const auto& [bits, names] : possible) {
    if (static_cast<size_t>(std::popcount(bits)) != names.size()) continue;  // a bit without a code came with them
    Group group{bits, 0};
    for (const std::string& name : names) group.flags |= vm_flag(name);
    groups_.push_back(group);
  }
}

std::optional<uint32_t> VmFlagBits::flags(uint64_t word) const {
  uint32_t flags = 0;
  for (const Group& group : groups_) {
    const uint64_t part = word & group.bits;
    if (part != 0 && part != group.bits && group.flags != 0) return std::nullopt;
    if (part != 0) flags |= group.flags;
    word &= ~group.bits;
  }
  return word == 0 ? std::optional(flags) : std::nullopt;
}

}  // namespace migrate
