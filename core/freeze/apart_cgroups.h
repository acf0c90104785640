// Cgroups for processes of ours that must not end with the cgroup that they were started in, nor with each other.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace migrate {

/// Cgroups below which others can be made, one a hierarchy.
struct ApartParents {
  std::vector<std::string> folders;
  std::string without;  ///< the first reason why a hierarchy has none; empty: there is none that lacks one
};

/// Of every mounted hierarchy by which processes are killed, frozen or limited (v2; of v1 those with memory, pids or
/// the freezer, and systemd's): the outermost cgroup in which root can make one. It is not the one that this process is
/// in, which may be killed with all that is below, unless that is all that is seen of the hierarchy; and it is root's
/// alone: whoever may write to a cgroup could make, before us, the one that is to be made there.
ApartParents find_apart_parents();

/// Makes all of them, or throws Error with none made. One that is there already is somebody else's.
void make_cgroups(const std::vector<std::string>& folders);

/// Removes those that are there, as soon as they are empty: nobody in them is moved or killed. Throws Error naming one
/// that stays; the others are removed all the same.
void remove_cgroups(const std::vector<std::string>& folders, std::chrono::milliseconds patience);

}  // namespace migrate
