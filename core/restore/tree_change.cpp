#include <map>
#include <set>
#include <string>

#include "core/restore/tree_order.h"

namespace migrate {
namespace {

class ChangePlanner {
 public:
  ChangePlanner(const std::vector<TaskNode>& have, std::vector<TaskNode>& want) : have_(have), want_(want) {
    for (size_t i = 0; i < have.size(); ++i) had_.emplace(have[i].pid, i);
    for (const TaskNode& t : want) wanted_.insert(t.pid);
    change_.fresh.resize(want.size());
  }

  TreeChange run() {
    if (have_.empty() || have_.front().pid != want_.front().pid) throw Error("the root of the tree is another task");
    for (size_t i = have_.size(); i-- > 1;)
      if (!wanted_.contains(have_[i].pid)) change_.gone.push_back({parent_of(have_, have_[i]), have_[i].pid});
    for (size_t i = 0; i < want_.size(); ++i) {
      const auto old = had_.find(want_[i].pid);
      change_.fresh[i] = old == had_.end();
      if (change_.fresh[i]) {
        plan_fresh(want_[i]);
      } else {
        plan_existing(want_[i], have_[old->second]);
      }
    }
    plan_group_helpers();
    find_affected();
    return std::move(change_);
  }

 private:
  [[noreturn]] static void impossible(const TaskNode& t, const std::string& what) {
    throw Error("task " + std::to_string(t.pid) + " " + what);
  }

  static pid_t parent_of(const std::vector<TaskNode>& tree, const TaskNode& t) {
    return t.parent < 0 ? 0 : tree[static_cast<size_t>(t.parent)].pid;
  }

  void plan_existing(TaskNode& t, const TaskNode& old) {
    if (old.zombie) impossible(t, "has ended already");
    if (parent_of(want_, t) != parent_of(have_, old)) impossible(t, "has another parent");
    if (t.exit_signal != old.exit_signal) impossible(t, "has another exit signal");
    pid_t group = old.pgid;
    if (t.sid != old.sid) {
      // The kernel refuses a group's leader.
      if (t.sid != t.pid || old.pgid == t.pid) impossible(t, "is in another session");
      t.new_session = true;
      group = t.pid;
    }
    // A leader takes its terminal when it begins the session: those that it had forked by then would have none.
    if (t.terminal != old.terminal && !t.new_session) impossible(t, "has another controlling terminal");
    if (t.pgid == group) return;
    plan_group(t);
  }

  void plan_fresh(TaskNode& t) {
    const TaskNode& parent = want_[static_cast<size_t>(t.parent)];
    t.new_session = t.sid == t.pid;
    if (!t.new_session && t.sid != parent.sid) impossible(t, "is not in the session of its parent");
    if (!t.new_session && t.terminal >= 0 && t.terminal != parent.terminal)
      impossible(t, "has not the controlling terminal of its parent");
    if (t.new_session && t.pgid == t.pid) return;
    if (wanted_.contains(t.pgid) || t.pgid != parent.pgid || is_group(t.pgid)) plan_group(t);
  }

  void plan_group(TaskNode& t) {
    if (t.new_session || t.pgid == 0) impossible(t, "is in a group that its shell cannot join");
    if (t.pgid == t.pid) {
      t.new_group = true;
    } else {
      t.join_group = t.pgid;
    }
  }

  /// Is it a group of the tree, or one outside of it that all have from the root?
  bool is_group(pid_t group) const { return group != 0 && group != have_.front().pgid; }

  /// A group without a leader lives on in its members; without these somebody must play the leader.
  void plan_group_helpers() {
    std::set<pid_t> alive;
    for (const TaskNode& t : want_) {
      const auto old = had_.find(t.pid);
      if (old != had_.end() && have_[old->second].pgid == t.pgid) alive.insert(t.pgid);
      if (t.new_group || (t.new_session && t.pgid == t.pid)) alive.insert(t.pid);
    }
    for (TaskNode& t : want_) {
      if (t.join_group == 0 || !alive.insert(t.join_group).second) continue;
      if (wanted_.contains(t.join_group)) impossible(t, "is in a group whose leader has left it");
      t.group_helper = t.join_group;
    }
  }

  void find_affected() {
    std::set<int> all;
    for (size_t i = 0; i < want_.size(); ++i) {
      const TaskNode& t = want_[i];
      const bool changes = t.new_session || t.new_group || t.join_group != 0;
      if (!change_.fresh[i] && changes) all.insert(static_cast<int>(i));
      if (change_.fresh[i] && !change_.fresh[static_cast<size_t>(t.parent)]) all.insert(t.parent);
    }
    change_.affected.assign(all.begin(), all.end());
  }

  const std::vector<TaskNode>& have_;
  std::vector<TaskNode>& want_;
  std::map<pid_t, size_t> had_;
  std::set<pid_t> wanted_;
  TreeChange change_;
};

}  // namespace

TreeChange plan_change(const std::vector<TaskNode>& have, std::vector<TaskNode>& want) {
  return ChangePlanner(have, want).run();
}

}  // namespace migrate
