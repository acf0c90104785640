// What the bits of the kernel's vm_flags mean. They are no ABI, and some depend on version, architecture and
// configuration: so they are learnt from mappings of our own, of which both smaps' letters and the word are known.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace migrate {

class VmFlagBits {
 public:
  /// A mapping: its vm_flags, and the two-letter codes of its VmFlags line.
  struct Sample {
    uint64_t word = 0;
    std::set<std::string> letters;
  };
  /// The kernel prints a code for each bit that has one, so the bit of a code is set in all samples with that code, and
  /// in none without it. Where that leaves one bit, it is the one; codes that always came together share theirs.
  explicit VmFlagBits(const std::vector<Sample>& samples);

  /// VmFlag bits; nullopt if the word has a bit whose meaning was not learnt.
  std::optional<uint32_t> flags(uint64_t word) const;

 private:
  struct Group {
    uint64_t bits;   ///< all set or none: `flags`, or nothing
    uint32_t flags;  ///< VmFlag bits; 0: of no interest here
  };
  std::vector<Group> groups_;
};

}  // namespace migrate
