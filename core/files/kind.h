// What a kind of open file is to the dump and to the restore: two interfaces. Each kind is a file of its own here,
// which ends in a `const Kind`, and a line of the list in kinds.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/files/file_owners.h"
#include "core/files/open_file.h"
#include "core/files/restore_files.h"

namespace migrate {

class DescriptorTables;
class LastingStates;
class MemfdDumper;
class MemfdRestorer;
class RegularDumper;
class RegularRestorer;
class RunningTree;
class SocketStates;
class TaskPaths;

/// What kinds use at the dump, and before it; all of it outlives them.
struct DumpServices {
  DumpContext& context;
  RegularDumper& regular;  ///< describes what a path leads to
  MemfdDumper& memfds;
};

/// What a tree that still runs can be asked for.
struct Preflight {
  RunningTree& tree;
  LastingStates& lasting;  ///< for what may be there for a moment only
};

/// At the dump.
class DumpKind {
 public:
  DumpKind() = default;
  virtual ~DumpKind() = default;
  DumpKind(const DumpKind&) = delete;
  DumpKind& operator=(const DumpKind&) = delete;

  /// Whether it is of this kind: by its link, of a path or pipe also by `st` and `info`, of a socket by `domain`.
  virtual bool matches(const OpenFile& file) const = 0;
  /// Emits what files.img says of it, under `file.id`. Throws Refusal, naming task and descriptor.
  virtual void dump(const OpenFile& file) = 0;
  /// All descriptors were dumped; those that wait in queues are now, and are descriptions of any kind.
  virtual void dump_queues() {}
  /// All descriptions were dumped.
  virtual void finish(const DescriptorTables&) {}
  /// Everything else of the tree was described, too: what was in doubt had time to show itself. Not at a preflight.
  virtual void settle() {}
  /// The tree was killed, since its images are stored: what is still held of it may end as such an end does.
  virtual void tree_is_dead() noexcept {}

  /// Throws Refusal for what dump() would refuse, while the tree runs: nothing is changed or consumed, a doubt is no
  /// refusal. As it comes, what dump() writes is thrown away.
  virtual void preflight(const OpenFile& file, Preflight&) { dump(file); }
  /// All descriptions were looked at.
  virtual void preflight_end(Preflight&) {}
  /// Whether preflight() of a file that matches needs `ours`, `st` and `info`, too.
  virtual bool preflight_opens(const OpenFile&) const { return true; }
};

/// A description that tasks of the tree have, as the images tell it.
struct UsedFile {
  uint32_t id;
  const img::file_entry& entry;
  const Holders& holders;  ///< any of them may open it
  /// When it was dumped, on the tree's CLOCK_MONOTONIC.
  std::optional<int64_t> dumped_at_ns;
};

/// What kinds use at the restore; all of it outlives them.
struct RestoreServices {
  const ImageSet& images;
  const FileRestoreOptions& options;
  Logger& log;
  const std::map<uint32_t, img::file_entry>& entries;
  const FileOwners& owners;
  TaskPaths& paths;
  RegularRestorer& regular;
  MemfdRestorer& memfds;
  const SocketStates& socket_states;

  /// Whose it is to be.
  FileOwner owner(const UsedFile& file) const { return owners.owner(file.id, file.holders); }
  /// Whose is what we make.
  FileOwner ours() const;
};

/// At the restore, in the coordinator. Images may be hostile: Corrupt, Error or Refusal.
class RestoreKind {
 public:
  RestoreKind() = default;
  virtual ~RestoreKind() = default;
  RestoreKind(const RestoreKind&) = delete;
  RestoreKind& operator=(const RestoreKind&) = delete;

  /// Whether check() has anything to ask of these images.
  virtual bool has_checks() const { return false; }
  /// Before anything is made: throws Refusal for what must not be.
  virtual void check(const UsedFile&) {}
  /// Whether it is opened by its path, by the right of its holders, with what else those have; such a kind sets the
  /// status flags itself.
  virtual bool by_path() const { return false; }
  /// A description of its own; an empty one for those that connect() brings.
  virtual Fd open(const UsedFile& file) = 0;
  /// All were opened: what hangs together is made, by file id.
  virtual std::map<uint32_t, Fd> connect() { return {}; }
  /// Everything is there, `fd` is the description's as it will be fetched from.
  virtual void opened(const UsedFile&, int /*fd*/) {}
  /// Once all descriptions of all kinds are there: their descriptors of ours, by file id. What waits in queues is put
  /// there now, and what only then can be set is.
  virtual void seal(const std::map<uint32_t, int>& /*opened*/) {}
  /// Never throws; failures are appended.
  virtual void after_gate(std::vector<std::string>&) {}
};

/// What all entries of files.img have, wherever it stands in them.
struct EntryFacts {
  bool there = false;  ///< the part of its type
  uint32_t id = 0;
  uint32_t flags = 0;
  const img::fown_entry* owner = nullptr;  ///< nullptr where the kind has none
};

struct Kind {
  img::fd_types type;
  EntryFacts (*facts)(const img::file_entry&);
  std::unique_ptr<DumpKind> (*dump)(const DumpServices&);
  std::unique_ptr<RestoreKind> (*restore)(const RestoreServices&);
};

/// `has` and `part` of a type's part in a file_entry, which has id, flags and owner under their usual names.
template <auto has, auto part>
EntryFacts facts_of_part(const img::file_entry& entry) {
  const auto& e = (entry.*part)();
  return {(entry.*has)(), e.id(), e.flags(), &e.fown()};
}

template <class T>
std::unique_ptr<DumpKind> make_dump(const DumpServices& services) {
  return std::make_unique<T>(services);
}

template <class T>
std::unique_ptr<RestoreKind> make_restore(const RestoreServices& services) {
  return std::make_unique<T>(services);
}

}  // namespace migrate
