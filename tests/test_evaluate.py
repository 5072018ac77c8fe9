"The numbers: as scikit-learn has them, each with an interval, and defined for whatever a folder holds."

import math, shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from fakeface.core import FaceError, load_json
from fakeface.detector import Detector
from fakeface.evaluate import (claims, cluster_rows, clusters, compare, compare_errors, ece, ece_if_perfect, errors, evaluate, grouped, holm, mcnemar, metrics_table, plot_confusion,
                               plot_curves, plot_errors, plot_reliability, ranking, slices, wilson)
from fakeface.model import build_model, metadata
from fakeface.report import answer, evaluate_folder, fill, results_markdown

def drawn_scores(seed, n_fake=60, n_real=40, apart=1.):
    rng = np.random.default_rng(seed)
    z = np.r_[rng.normal(apart, 1, n_fake), rng.normal(-apart, 1, n_real)].round(1)  # rounded: ties occur
    return pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(len(z))], label=['fake'] * n_fake + ['real'] * n_real, p_fake=1 / (1 + np.exp(-z))))

@pytest.mark.parametrize('threshold', [.5, .2, .9])
@pytest.mark.parametrize('seed', range(3))
def test_as_scikit_learn_has_them(seed, threshold):
    t = drawn_scores(seed)
    result = evaluate(t, threshold, bootstrap=100)
    fake, said = t.label == 'fake', t.p_fake >= threshold
    theirs = dict(accuracy=sk.accuracy_score(fake, said), precision=sk.precision_score(fake, said, zero_division=0), recall=sk.recall_score(fake, said),
                  specificity=sk.recall_score(~fake, ~said), f1=sk.f1_score(fake, said), auc=sk.roc_auc_score(fake, t.p_fake),
                  average_precision=sk.average_precision_score(fake, t.p_fake),
                  mcc=sk.matthews_corrcoef(fake, said), brier=sk.brier_score_loss(fake, t.p_fake), log_loss=sk.log_loss(fake, t.p_fake), eer=ranking(fake.to_numpy(), t.p_fake.to_numpy())['eer'],
                  **{f'tpr_at_{f}_fpr': (t.p_fake[fake] > t.p_fake[~fake].max()).mean() for f in ('1', '0.5', '0.1')})  # of 40 reals none may be accused
    assert {k: v['value'] for k, v in result['metrics'].items()} == pytest.approx(theirs)
    assert result['calibration']['ece'] == pytest.approx(abs((fake - t.p_fake).groupby((t.p_fake * 10).astype(int)).sum()).sum() / 100)
    assert result['confusion'] == sk.confusion_matrix(t.label, np.where(said, 'fake', 'real'), labels=['fake', 'real']).tolist()
    for m in result['metrics'].values():
        assert -1 <= m['low'] <= m['value'] <= m['high'] <= 3 and ('k' not in m or m['k'] / m['n'] == m['value'])
    assert (result['n'], result['n_fake'], result['n_real'], result['threshold']) == (100, 60, 40, threshold)

def test_what_perfect_calibration_would_show():
    "The range holds the error of labels drawn from the scores about as often as it says, and not that of scores that are too sure."
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(40):
        p = rng.uniform(size=200)
        low, high = ece_if_perfect(p, 200, seed)
        inside += low <= ece(rng.uniform(size=200) < p, p) <= high
        assert ece(rng.uniform(size=200) < .5, p) > high
    assert inside >= 34

def test_more_images_narrow_the_interval():
    width = lambda m: m['high'] - m['low']
    few, many = (evaluate(drawn_scores(0, n, n), bootstrap=200)['metrics'] for n in (50, 2000))
    assert all(width(many[k]) < width(few[k]) / 3 for k in many if not k.startswith('tpr_at'))  # they hang on the few highest reals

def test_the_interval_is_wilsons():
    assert wilson(0, 10) == pytest.approx((0, .27753), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((.25527, .36621), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 0) == (0, 1)

def test_a_score_at_the_threshold_is_fake():
    assert evaluate(pd.DataFrame(dict(label=['fake', 'real'], p_fake=[.5, .5])), .5, bootstrap=10)['confusion'] == [[1, 0], [1, 0]]

@pytest.mark.parametrize('label', ['fake', 'real'])
def test_one_class(label):
    t = drawn_scores(0).query('label == @label')
    result = evaluate(t, bootstrap=10)
    assert {'auc', 'f1', 'average_precision'}.isdisjoint(result['metrics']) and result['n'] == len(t)
    known = 'recall' if label == 'fake' else 'specificity'
    assert result['metrics'][known]['value'] == result['metrics']['accuracy']['value']
    row = results_markdown({'x': result}).splitlines()[2].split('|')
    assert row[3].strip() == '' and sum(bool(c.strip()) for c in row) == 3  # name, counts, the one share
    assert len(metrics_table(result)) and answer(result | dict(source='x'))

def test_no_errors_and_nothing_but_errors(tmp_path):
    for sign in (1, -1):
        t = drawn_scores(0, apart=9. * sign)
        result = evaluate(t, bootstrap=50)
        assert result['metrics']['accuracy']['value'] == result['metrics']['auc']['value'] == (sign > 0)
        assert len(errors(t)) == (0 if sign > 0 else 100)
        assert all(np.isfinite(list(m.values())).all() for m in result['metrics'].values())
        for figure in (plot_confusion(result).figure, plot_reliability(t).figure, plot_curves(t), plot_errors(tmp_path, errors(t).head(0))): plt.close(figure)
    assert compare_errors(pd.DataFrame(dict(wrong=[False] * 20, v=range(20)))).empty

@pytest.mark.parametrize('seed', range(3))
def test_answers_and_doubt(seed):
    "What the band leaves unanswered is in neither share; a score at its lower end is in doubt, one at its upper end is not."
    t, band = drawn_scores(seed), (.3, .8)
    t.loc[[0, 1, 98, 99], 'p_fake'] = [.3, .8, .3, .8]
    said = np.select([t.p_fake < .3, t.p_fake >= .8], ['real', 'fake'], '')
    m, plain = (evaluate(t, .6, 20, band=b)['metrics'] for b in (band, None))
    assert (m['answered']['k'], m['answered']['n']) == ((said != '').sum(), 100) and 0 < m['answered']['value'] < 1
    assert (m['wrong_answers']['k'], m['wrong_answers']['n']) == (((said != '') & (said != t.label)).sum(), (said != '').sum())
    assert plain == {k: v for k, v in m.items() if k not in ('answered', 'wrong_answers')}  # the other numbers know no doubt
    sure = evaluate(t, .6, 20, band=(.6, .6))['metrics']
    assert sure['answered']['value'] == 1 and sure['wrong_answers']['value'] == pytest.approx(1 - sure['accuracy']['value'])
    none = evaluate(t, .6, 20, band=(1e-9, 1 - 1e-9))['metrics']
    assert none['answered']['value'] == 0 and (none['wrong_answers']['low'], none['wrong_answers']['high']) == (0, 1)

def test_calibration_error_of_what_is_known():
    fake = np.array([True, False, True, True, False])
    assert ece(fake, fake.astype(float)) == 0 and ece(fake, 1. - fake) == 1
    assert ece(fake[:4], np.array([.72, .74, .76, .78])) == pytest.approx(0)  # three of four, called 75 %
    assert ece(fake, np.array([.9, .1, .9, .2, .2])) == pytest.approx((.2 + .1 + .6) / 5)
    rng = np.random.default_rng(0); p = rng.uniform(size=20_000); honest = rng.uniform(size=20_000) < p
    assert ece(honest, p) < .02 < .1 < ece(honest, p**3)

def test_fakes_caught_at_a_bounded_rate_of_false_alarms():
    fake, real = np.array([.95, .85, .75, .05]), np.linspace(0, .9, 1000)
    r = ranking(np.r_[[True] * 4, [False] * 1000], np.r_[fake, real])
    for rate, k in ((1, 10), (.5, 5), (.1, 1)): assert r[f'tpr_at_{rate:g}_fpr'] == (fake > np.sort(real)[-k - 1]).mean()
    assert all(v == 0 for n, v in ranking(np.r_[[True] * 4, [False] * 10], np.zeros(14)).items() if n.startswith('tpr'))

def test_equal_error_rate_is_where_misses_and_false_alarms_are_equal():
    assert ranking(np.array([True, False]), np.array([.9, .1]))['eer'] == 0 and ranking(np.array([True, False]), np.array([.1, .9]))['eer'] == 1
    rng = np.random.default_rng(0)
    fake, score = np.arange(40_000) < 20_000, np.r_[rng.normal(1, 1, 20_000), rng.normal(-1, 1, 20_000)]
    assert ranking(fake, score)['eer'] == pytest.approx(.1587, abs=.005)  # the normal distribution beyond one deviation
    t = np.quantile(score[~fake], 1 - ranking(fake, score)['eer'])
    assert (score[fake] < t).mean() == pytest.approx((score[~fake] >= t).mean(), abs=1e-3)

def test_mcnemar_counts_only_where_two_models_differ():
    a, b = np.r_[[True] * 90, [False] * 10], np.r_[[True] * 80, [False] * 10, [True] * 2, [False] * 8]
    assert mcnemar(a, b) == dict(only_a=10, only_b=2, p=pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12))
    assert mcnemar(b, a)['p'] == mcnemar(a, b)['p'] and mcnemar(a, a) == dict(only_a=0, only_b=0, p=1)

def test_two_runs_are_compared_on_the_images_they_share():
    a, b = drawn_scores(0, apart=2.), drawn_scores(1, apart=.5)
    c = compare(a, b.sample(frac=1, random_state=0).head(90), bootstrap=200)
    assert c['n'] == 90 and c['accuracy'][0] > c['accuracy'][1] and c['mcnemar']['p'] < .05 and 0 < c['auc_difference']['low'] < c['auc'][0] - c['auc'][1] < c['auc_difference']['high']
    assert compare(a, a, thresholds=(.5, .9), bootstrap=9)['mcnemar']['only_b'] < compare(a, a, thresholds=(.5, .9), bootstrap=9)['mcnemar']['only_a']
    with pytest.raises(FaceError, match='in common'): compare(a, b.assign(path='x' + b.path))

def test_the_reliability_diagram_shows_the_shares():
    t = pd.DataFrame(dict(label=['fake', 'real', 'fake', 'fake', 'real'], p_fake=[.72, .74, .82, 1., .02]))
    ax = plot_reliability(t)
    dots = sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines if line.get_marker() == 'o')
    assert np.allclose(dots, [(.02, 0), (.73, .5), (.82, 1), (1, 1)])
    plt.close(ax.figure)

def test_errors_come_surest_first():
    t = drawn_scores(1)
    wrong = errors(t, .4)
    assert len(wrong) == ((t.p_fake >= .4) != (t.label == 'fake')).sum() > 0 and wrong.confidence.is_monotonic_decreasing
    assert ((wrong.error == 'miss') == (wrong.label == 'fake')).all()
    for kind, order in (('miss', True), ('false alarm', False)): assert wrong.p_fake[wrong.error == kind].is_monotonic_increasing == order

def test_holm_on_a_worked_example():
    assert holm([.005, .01, .03, .04]) == pytest.approx([.02, .03, .06, .06]) and holm([.04, .005, .03, .01]) == pytest.approx([.06, .02, .06, .03]) and holm([.9, .8]).tolist() == [1, 1]

def test_of_nothing_hardly_anything_is_claimed():
    "Twenty-four groups of images whose errors are drawn by chance: in at most about one analysis of twenty is anything said, which without the correction happens in most."
    def analysis(seed):
        rng = np.random.default_rng(seed)
        return slices(pd.DataFrame(dict(wrong=rng.uniform(size=400) < .1)).join(pd.DataFrame(rng.normal(size=(400, 6))).add_prefix('p')))
    drawn = [analysis(seed) for seed in range(100)]
    assert sum('None of these 24 groups' not in claims(s)[0] for s in drawn) <= 9 < 40 < sum((s.p < .05).any() for s in drawn)

def test_what_stands_out_is_named_with_its_counts():
    t = pd.DataFrame(dict(wrong=np.arange(400) < 20, size=np.arange(400.)))
    said, *_ = claims(slices(t))  # the others stand out for having none
    assert 'Of the 100 images with size from' in said and '20 are misjudged: 20.0 %' in said and 'against 0.0 % of the others' in said
    few = pd.DataFrame([grouped(np.arange(400) < 19, np.arange(400) < 19, 'of a small group'), grouped(np.arange(400) < 19, np.arange(400) % 2 == 0, 'of a large one')])
    assert 'None of these 1 groups' in claims(few)[0] and few.p[0] < 1e-20  # shown, not claimed

def test_images_in_which_no_face_was_found_are_a_slice():
    s = slices(pd.DataFrame(dict(wrong=[True] * 30 + [False] * 70, face=[np.nan] * 30 + list(np.linspace(.8, 1, 70)))))
    assert s.name.tolist()[-1] == 'without face' and (s.n.iloc[-1], s.k.iloc[-1], s.n.sum()) == (30, 30, 100) and any('30 images without face' in c for c in claims(s))

@pytest.mark.parametrize('n', [10, 20, 400])
def test_clusters_find_groups_and_the_same_ones_again(n):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, n); group[:2] = 0, 1
    x, p = rng.normal(size=(n, 512)) * .1 + 3 * group[:, None], np.where(group, .9, .1)
    table, shares = clusters(x, p)
    again, _ = clusters(x, p)
    assert table.equals(again) and len(table) == n and table.cluster.min() == 1 and table.cluster.nunique() <= 8 and 1 >= shares[0] > shares[1] > 0
    assert pd.Series(p).groupby(table.cluster).nunique().eq(1).all() and table.cluster[group == 0].max() < table.cluster[group == 1].min()  # the lowest scores come first
    rows = cluster_rows(table.assign(label=np.where(group, 'fake', 'real'), p_fake=p, wrong=np.arange(n) == 0))
    assert rows.n.sum() == n and rows.k.sum() == 1 and set(rows.fakes) == {0, 1}

@pytest.mark.parametrize('x', [np.zeros((9, 512)), np.random.default_rng(0).normal(size=(9, 512)), np.ones((50, 512))])
def test_no_clusters_where_there_are_none(x): assert clusters(x, np.linspace(0, 1, len(x))) is None

def test_copies_of_two_images_are_two_clusters():
    table, _ = clusters(np.repeat(np.random.default_rng(0).normal(size=(2, 512)), 100, 0), np.repeat([.1, .9], 100))
    assert table.cluster.tolist() == [1] * 100 + [2] * 100

@pytest.fixture(scope='module')
def detector(checkpoint): return Detector.load(checkpoint, 'cpu')

def test_a_folder(detector, drawn):
    result = evaluate_folder(detector, drawn, 'test', 50, progress=False)
    assert (result['n_fake'], result['n_real'], result['unreadable'], result['source'], result['split']) == (6, 6, 0, 'standin', 'test')
    said = {c: sum(v.verdict == 'fake' for v in detector.predict(sorted((drawn/'test'/c).iterdir()), whole=True)) for c in ('fake', 'real')}
    assert result['confusion'] == [[said['fake'], 6 - said['fake']], [said['real'], 6 - said['real']]]
    assert evaluate_folder(detector, drawn, None, 50, progress=False)['n'] == 56
    assert result['metrics']['answered']['value'] == 1

def test_a_folder_in_doubt(drawn):
    doubting = Detector(build_model('random', seed=1)[0], metadata(size=64, band=(1e-9, 1 - 1e-9)), 'cpu')
    m = evaluate_folder(doubting, drawn, 'test', 50, progress=False)['metrics']
    assert (m['answered']['k'], m['answered']['n'], m['wrong_answers']['n']) == (0, 12, 0) and 0 < m['accuracy']['n']

def test_a_folder_without_splits_with_one_bad_file(detector, faces):
    bad = next((faces/'valid'/'real').iterdir()); bad.write_bytes(bad.read_bytes()[:500])
    result = evaluate_folder(detector, faces/'valid', None, 50, progress=False)
    assert (result['n'], result['n_real'], result['unreadable']) == (11, 5, 1)

def test_a_folder_of_one_class(detector, faces):
    shutil.rmtree(faces/'test'/'real')
    result = evaluate_folder(detector, faces/'test', None, 50, progress=False)
    assert result['n_real'] == 0 and 'auc' not in result['metrics'] and 'accused 0 of 0' in answer(result)

def test_the_report_of_a_folder_shows_clusters_and_what_the_errors_rest_on(detector, drawn, tmp_path):
    "Of a function from elsewhere nothing is seen inside, and what an earlier evaluation left is not shown as its own."
    evaluate_folder(detector, drawn, 'test', 20, progress=False, out=tmp_path)
    ours, (page, c), wrong = plt.imread(tmp_path/'figures'/'errors.png'), ((tmp_path/'report.html').read_text(), load_json(tmp_path/'clusters.json')), pd.read_csv(tmp_path/'errors.csv')
    assert len(wrong) and sum(r['n'] for r in c['table']) == 12 and sum(r['k'] for r in c['table']) == len(wrong) and 'number stands to the upper right of the middle of its cluster' in page
    evaluate_folder(lambda paths: pd.read_csv(tmp_path/'predictions.csv').p_fake.to_numpy(), drawn, 'test', 20, progress=False, out=tmp_path)
    theirs = plt.imread(tmp_path/'figures'/'errors.png')
    assert theirs.shape[0] < .7 * ours.shape[0]  # no heatmaps below the images
    assert load_json(tmp_path/'clusters.json') == {} and 'cluster' not in (tmp_path/'report.html').read_text()

def test_a_folder_of_one_class_has_clusters_too(detector, faces, tmp_path):
    shutil.rmtree(faces/'train'/'real')
    evaluate_folder(detector, faces/'train', None, 20, progress=False, out=tmp_path)
    assert {r['fakes'] for r in load_json(tmp_path/'clusters.json')['table']} == {1} and (tmp_path/'figures'/'clusters.png').stat().st_size > 1000

def test_a_folder_that_cannot_be_judged(detector, faces, tmp_path):
    for p in (faces/'valid').rglob('*.jpg'): p.write_bytes(b'x')
    for root, split in ((faces/'valid', None), (faces/'train', 'test'), (faces/'train'/'real', None), (tmp_path/'none', None)):
        with pytest.raises(FaceError) as e: evaluate_folder(detector, root, split, 10, progress=False)
        assert str(root) in str(e.value) and '\n' not in str(e.value)

def test_numbers_between_marks(tmp_path):
    page = tmp_path/'a.md'
    page.write_text('<!-- a -->old<!-- /a --> kept \\1 <!-- b -->kept<!-- /b -->')
    fill(page, 'a', 'new \\g<0>')
    fill(page, 'a', 'newer \\g<0>')
    assert page.read_text() == '<!-- a -->\nnewer \\g<0>\n<!-- /a --> kept \\1 <!-- b -->kept<!-- /b -->'
    with pytest.raises(FaceError): fill(page, 'c', 'x')
