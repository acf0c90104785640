// The list of all kinds of open files (kind.h), and what a dump says of a file that is of none.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/files/kind.h"
#include "core/files/memfd.h"
#include "core/files/regular.h"

namespace migrate {

std::span<const Kind* const> all_kinds();
/// nullptr: none.
const Kind* kind_of(img::fd_types type);

/// All kinds at a dump, with what they share.
class DumpKinds {
 public:
  explicit DumpKinds(DumpContext& context);

  struct One {
    const Kind* kind;
    std::unique_ptr<DumpKind> dump;
  };
  /// Throws Refusal, naming task, descriptor and what it is, for kinds that cannot be moved.
  const One& of(const OpenFile& file) const;
  std::span<const One> all() const { return kinds_; }
  RegularDumper& regular() { return regular_; }
  MemfdDumper& memfds() { return memfds_; }

 private:
  const FileDumpOptions& options_;
  RegularDumper regular_;
  MemfdDumper memfds_;
  std::vector<One> kinds_;
};

}  // namespace migrate
