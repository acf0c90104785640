// Who has what open: the descriptor tables of a dump, as far as kinds need them that name files by their numbers.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "core/files/epoll.h"

namespace migrate {

class DescriptorTables {
 public:
  struct Number {
    uint64_t inode;
    pid_t pid;         ///< a task that has the table
    uint32_t file_id;  ///< what it leads to
  };
  /// A number of a table.
  void add_number(uint32_t files_id, int fd, const Number& number) { numbers_[files_id].emplace(fd, number); }
  /// A new description of a file with that inode number.
  void add_description(uint64_t inode) { ++descriptions_of_inode_[inode]; }
  void add_holder(uint32_t file_id, const Holder& holder) { holders_[file_id].push_back(holder); }

  /// Who has it, where that was recorded: of epolls.
  const std::vector<Holder>& holders(uint32_t file_id) const {
    static const std::vector<Holder> kNone;
    const auto it = holders_.find(file_id);
    return it == holders_.end() ? kNone : it->second;
  }
  bool has(uint32_t files_id, int fd) const { return numbers_.at(files_id).contains(fd); }
  uint64_t inode(uint32_t files_id, int fd) const { return numbers_.at(files_id).at(fd).inode; }
  /// The first for which `is` says so, among those whose file has that inode number.
  std::optional<uint32_t> find(uint64_t inode, const std::function<bool(pid_t, int fd)>& is) const {
    for (const auto& [table, numbers] : numbers_)
      for (const auto& [fd, number] : numbers)
        if (number.inode == inode && is(number.pid, fd)) return number.file_id;
    return std::nullopt;
  }
  /// Whether not exactly one description has that inode number.
  bool several_have(uint64_t inode) const {
    const auto it = descriptions_of_inode_.find(inode);
    return it == descriptions_of_inode_.end() || it->second != 1;
  }

 private:
  std::map<uint32_t, std::map<int, Number>> numbers_;  ///< by table
  std::unordered_map<uint32_t, std::vector<Holder>> holders_;
  std::unordered_map<uint64_t, int> descriptions_of_inode_;
};

}  // namespace migrate
