"""The numbers: as scikit-learn has them, each with an interval, and defined for whatever a folder
holds."""

import shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

from fakeface.core import FaceError, load_json, wilson
from fakeface.detector import Detector
from fakeface.evaluate import (cluster_rows, clusters, compare, compare_errors, errors, evaluate,
                               group_claims, grouped, holm, mcnemar, metrics_table, plot_confusion,
                               plot_curves, plot_errors, plot_reliability, ranking, slices)
from fakeface.folders import evaluate_folder, predict_folder, robustness_folder
from fakeface.metrics import ece, ece_if_perfect
from fakeface.model import build_model, metadata
from fakeface.report import answer
from fakeface.ship import fill_marks, markdown_table, results_row

def drawn_scores(seed, n_fake=60, n_real=40, apart=1.):
    "Predictions of two overlapping populations; rounded, so that ties occur."
    rng = np.random.default_rng(seed)
    odds = np.r_[rng.normal(apart, 1, n_fake), rng.normal(-apart, 1, n_real)].round(1)
    return pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(len(odds))],
                             label=['fake'] * n_fake + ['real'] * n_real,
                             p_fake=1 / (1 + np.exp(-odds))))

@pytest.mark.parametrize('threshold', [.5, .2, .9])
@pytest.mark.parametrize('seed', range(3))
def test_as_scikit_learn_has_them(seed, threshold):
    t = drawn_scores(seed)
    result, fake, said = evaluate(t, threshold, 100), t.label == 'fake', t.p_fake >= threshold
    above = (t.p_fake[fake] > t.p_fake[~fake].max()).mean()  # of 40 reals none may be accused
    theirs = dict(
        accuracy=sk.accuracy_score(fake, said), recall=sk.recall_score(fake, said),
        precision=sk.precision_score(fake, said, zero_division=0), f1=sk.f1_score(fake, said),
        specificity=sk.recall_score(~fake, ~said), auc=sk.roc_auc_score(fake, t.p_fake),
        average_precision=sk.average_precision_score(fake, t.p_fake),
        mcc=sk.matthews_corrcoef(fake, said), brier=sk.brier_score_loss(fake, t.p_fake),
        log_loss=sk.log_loss(fake, t.p_fake),
        eer=ranking(fake.to_numpy(), t.p_fake.to_numpy())['eer'],
        **{f'tpr_at_{f}_fpr': above for f in ('1', '0.5', '0.1')})
    assert {k: v['value'] for k, v in result['metrics'].items()} == pytest.approx(theirs)
    matrix = sk.confusion_matrix(~fake, ~said).tolist()
    assert (result['confusion'], result['n_fake'], result['n_real']) == (matrix, 60, 40)
    for m in result['metrics'].values():
        assert -1 <= m['low'] <= m['value'] <= m['high'] <= 3
        assert 'k' not in m or m['k'] / m['n'] == m['value']

def test_what_perfect_calibration_would_show():
    "The range holds the error of labels drawn from the scores about as often as it says."
    rng, inside = np.random.default_rng(1), 0
    for seed in range(40):
        p = rng.uniform(size=200)
        low, high = ece_if_perfect(p, 200, seed)
        inside += low <= ece(rng.uniform(size=200) < p, p) <= high
        assert ece(rng.uniform(size=200) < .5, p) > high  # of scores that are too sure
    assert inside >= 34

def test_more_images_narrow_the_interval():
    few, many = (evaluate(drawn_scores(0, n, n), bootstrap=200)['metrics'] for n in (50, 2000))
    width = lambda m: m['high'] - m['low']
    # the share at a bounded rate hangs on the few highest reals
    assert all(width(many[k]) < width(few[k]) / 3 for k in many if not k.startswith('tpr_at'))

def test_the_interval_is_wilsons():
    assert wilson(0, 10) == pytest.approx((0, .27753), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((.25527, .36621), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 0) == (0, 1)

def test_a_score_at_the_threshold_is_fake():
    t = pd.DataFrame(dict(label=['fake', 'real'], p_fake=[.5, .5]))
    assert evaluate(t, .5, bootstrap=10)['confusion'] == [[1, 0], [1, 0]]

@pytest.mark.parametrize('label, known', [('fake', 'recall'), ('real', 'specificity')])
def test_one_class(label, known):
    t = drawn_scores(0).query('label == @label')
    result = evaluate(t, bootstrap=10)
    m = result['metrics']
    assert {'auc', 'f1', 'average_precision'}.isdisjoint(m) and result['n'] == len(t)
    assert m[known]['value'] == m['accuracy']['value']
    row = results_row('x', result)
    assert row['accuracy'] == '' and sum(v != '' for v in row.values()) == 3  # name, counts, share
    assert len(metrics_table(result)) and answer(result | dict(source='x'))

@pytest.mark.parametrize('sign', [1, -1])
def test_no_errors_and_nothing_but_errors(sign, tmp_path):
    t = drawn_scores(0, apart=9. * sign)
    result = evaluate(t, bootstrap=50)
    right = float(sign > 0)
    assert result['metrics']['accuracy']['value'] == result['metrics']['auc']['value'] == right
    assert len(errors(t)) == (0 if sign > 0 else 100)
    assert all(np.isfinite(list(m.values())).all() for m in result['metrics'].values())
    plot_confusion(result), plot_reliability(t), plot_curves(t)
    plot_errors(tmp_path, errors(t).head(0))
    plt.close('all')
    assert compare_errors(pd.DataFrame(dict(wrong=[sign < 0] * 20, v=range(20)))).empty

@pytest.mark.parametrize('seed', range(3))
def test_answers_and_doubt(seed):
    "A score at the lower end of the band is in doubt, one at its upper end is not."
    t = drawn_scores(seed)
    t.loc[[0, 1, 98, 99], 'p_fake'] = [.3, .8, .3, .8]
    said = np.select([t.p_fake < .3, t.p_fake >= .8], ['real', 'fake'], '')
    m, plain = (evaluate(t, .6, 20, band=b)['metrics'] for b in ((.3, .8), None))
    answers, wrong = m.pop('coverage'), m.pop('selective_risk')
    assert (answers['k'], answers['n']) == ((said != '').sum(), 100) and 0 < answers['value'] < 1
    assert wrong['k'] == ((said != '') & (said != t.label)).sum() and wrong['n'] == answers['k']
    assert plain == m  # the other numbers know no doubt

def test_without_any_answer_nothing_is_known_of_the_answers():
    m = evaluate(drawn_scores(0), .6, 20, band=(1e-9, 1 - 1e-9))['metrics']
    wrong = m['selective_risk']
    assert m['coverage']['value'] == 0 and (wrong['low'], wrong['high']) == (0, 1)

def test_calibration_error_of_what_is_known():
    fake = np.array([True, False, True, True, False])
    assert ece(fake, fake.astype(float)) == 0 and ece(fake, 1. - fake) == 1
    three_of_four = np.array([.72, .74, .76, .78])
    assert ece(fake[:4], three_of_four) == pytest.approx(0)
    assert ece(fake, np.array([.9, .1, .9, .2, .2])) == pytest.approx((.2 + .1 + .6) / 5)

def test_fakes_caught_at_a_bounded_rate_of_false_alarms():
    fake, real = np.array([.95, .85, .75, .05]), np.linspace(0, .9, 1000)
    r = ranking(np.r_[[True] * 4, [False] * 1000], np.r_[fake, real])
    for rate, k in ((1, 10), (.5, 5), (.1, 1)):
        assert r[f'tpr_at_{rate:g}_fpr'] == (fake > np.sort(real)[-k - 1]).mean()

def test_equal_error_rate_is_where_misses_and_false_alarms_are_equal():
    rng, fake = np.random.default_rng(0), np.arange(40_000) < 20_000
    score = rng.normal(np.where(fake, 1, -1), 1)
    eer = ranking(fake, score)['eer']
    assert eer == pytest.approx(.1587, abs=.005)  # the normal distribution beyond one deviation
    t = np.quantile(score[~fake], 1 - eer)
    assert (score[fake] < t).mean() == pytest.approx((score[~fake] >= t).mean(), abs=1e-3)
    assert [ranking(np.array([True, False]), np.array(s))['eer'] for s in ([.9, .1], [.1, .9])] \
        == [0, 1]

def test_mcnemar_is_symmetric():
    a = np.r_[[True] * 90, [False] * 10]
    b = np.r_[[True] * 80, [False] * 10, [True] * 2, [False] * 8]
    assert mcnemar(a, b) == dict(only_a=10, only_b=2, p=pytest.approx(2 * 79 / 2**12))
    assert mcnemar(b, a)['p'] == mcnemar(a, b)['p']

def test_two_runs_are_compared_on_the_images_they_share():
    a, b = drawn_scores(0, apart=2.), drawn_scores(1, apart=.5)
    c = compare(a, b.sample(frac=1, random_state=0).head(90), bootstrap=200)
    d = c['auc_difference']
    assert c['n'] == 90 and c['accuracy'][0] > c['accuracy'][1] and c['mcnemar']['p'] < .05
    assert 0 < d['low'] < c['auc'][0] - c['auc'][1] < d['high']
    stricter = compare(a, a, thresholds=(.5, .9), bootstrap=9)['mcnemar']
    assert stricter['only_b'] < stricter['only_a']
    with pytest.raises(FaceError, match='in common'): compare(a, b.assign(path='x' + b.path))

def test_the_reliability_diagram_shows_the_shares():
    t = pd.DataFrame(dict(label=['fake', 'real', 'fake', 'fake', 'real'],
                          p_fake=[.72, .74, .82, 1., .02]))
    lines = [line for line in plot_reliability(t).lines if line.get_marker() == 'o']
    dots = sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines)
    assert np.allclose(dots, [(.02, 0), (.73, .5), (.82, 1), (1, 1)])
    plt.close('all')

def test_errors_come_surest_first():
    t = drawn_scores(1)
    wrong = errors(t, .4)
    assert len(wrong) == ((t.p_fake >= .4) != (t.label == 'fake')).sum() > 0
    assert ((wrong.error == 'miss') == (wrong.label == 'fake')).all()
    assert wrong.p_fake[wrong.error == 'miss'].is_monotonic_increasing
    assert wrong.p_fake[wrong.error == 'false alarm'].is_monotonic_decreasing

def test_holm_on_a_worked_example():
    assert holm([.04, .005, .03, .01]) == pytest.approx([.06, .02, .06, .03])
    assert holm([.9, .8]).tolist() == [1, 1]

def test_of_nothing_hardly_anything_is_claimed():
    """Twenty-four groups of images whose errors are drawn by chance: in about one analysis of
    twenty is anything said, which without the correction happens in most."""
    def analysis(seed):
        rng = np.random.default_rng(seed)
        facts = pd.DataFrame(rng.normal(size=(400, 6))).add_prefix('p')
        return slices(facts.assign(wrong=rng.uniform(size=400) < .1))
    drawn = [analysis(seed) for seed in range(100)]
    assert sum('None of these 24 groups' not in group_claims(s)[0] for s in drawn) <= 9
    assert sum((s.p < .05).any() for s in drawn) > 40

def test_what_stands_out_is_named_with_its_counts():
    t = pd.DataFrame(dict(wrong=np.arange(400) < 20, size=np.arange(400.)))
    said, *_ = group_claims(slices(t))  # the others stand out for having none
    assert 'Of the 100 images with size from' in said and '20 are misjudged: 20.0 %' in said
    assert 'against 0.0 % of the others' in said
    first = np.arange(400) < 19
    few = pd.DataFrame([grouped(first, first, 'of a small group'),
                        grouped(first, np.arange(400) % 2 == 0, 'of a large one')])
    assert 'None of these 1 groups' in group_claims(few)[0]
    assert few.p[0] < 1e-20  # shown, not claimed

def test_images_in_which_no_face_was_found_are_a_slice():
    faces = [np.nan] * 30 + list(np.linspace(.8, 1, 70))
    s = slices(pd.DataFrame(dict(wrong=[True] * 30 + [False] * 70, face=faces)))
    last = s.iloc[-1]
    assert (last['name'], last.n, last.k, s.n.sum()) == ('without face', 30, 30, 100)

@pytest.mark.parametrize('n', [10, 20, 400])
def test_clusters_find_groups_and_the_same_ones_again(n):
    "The cluster of the lowest scores comes first."
    rng = np.random.default_rng(0)
    group = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    x, p = rng.normal(size=(n, 512)) * .1 + 3 * group[:, None], np.where(group, .9, .1)
    (table, shares), (again, _) = clusters(x, p), clusters(x, p)
    assert table.equals(again) and table.cluster.min() == 1 and table.cluster.nunique() <= 8
    assert 1 >= shares[0] > shares[1] > 0
    assert table.cluster[group == 0].max() < table.cluster[group == 1].min()
    rows = cluster_rows(table.assign(label=np.where(group, 'fake', 'real'), p_fake=p,
                                     wrong=np.arange(n) == 0))
    assert rows.n.sum() == n and rows.k.sum() == 1 and set(rows.fakes) == {0, 1}

def test_copies_of_two_images_are_two_clusters():
    two = np.random.default_rng(0).normal(size=(2, 512))
    table, _ = clusters(np.repeat(two, 100, 0), np.repeat([.1, .9], 100))
    assert table.cluster.tolist() == [1] * 100 + [2] * 100

@pytest.fixture(scope='module')
def detector(checkpoint): return Detector.load(checkpoint, 'cpu')

def test_a_folder(detector, drawn):
    result = evaluate_folder(detector, drawn, 'test', bootstrap=50, progress=False)
    assert (result['n_fake'], result['n_real'], result['unreadable']) == (6, 6, 0)
    assert (result['source'], result['split']) == ('standin', 'test')
    for c, row in zip(('fake', 'real'), result['confusion']):
        verdicts = detector.predict(sorted((drawn/'test'/c).iterdir()), whole=True)
        said = sum(v.verdict == 'fake' for v in verdicts)
        assert row == [said, 6 - said]
    assert evaluate_folder(detector, drawn, bootstrap=50, progress=False)['n'] == 56

def test_each_image_is_judged_once(detector, drawn, monkeypatch):
    "Scores and features come from the same pass, in the same order."
    judged, judge = [], Detector.logits_and_maps
    monkeypatch.setattr(Detector, 'logits_and_maps',
                        lambda self, x: judged.append(len(x)) or judge(self, x))
    table, features, _ = predict_folder(detector, drawn, progress=False)
    assert sum(judged) == len(table) == len(features) == 56
    weight, bias = detector.model.fc.weight.detach(), detector.model.fc.bias.detach()
    fake, real = (features @ weight.numpy().T + bias.numpy()).T
    assert table.p_fake.tolist() == pytest.approx(1 / (1 + np.exp(real - fake)), abs=1e-5)

def test_a_folder_in_doubt(drawn):
    doubt = metadata(size=64, band=(1e-9, 1 - 1e-9))
    doubting = Detector(build_model('random', seed=1)[0], doubt, 'cpu')
    m = evaluate_folder(doubting, drawn, 'test', bootstrap=50, progress=False)['metrics']
    assert (m['coverage']['k'], m['coverage']['n'], m['selective_risk']['n']) == (0, 12, 0)

def test_a_folder_without_splits_with_one_bad_file(detector, faces):
    bad = next((faces/'valid'/'real').iterdir())
    bad.write_bytes(bad.read_bytes()[:500])
    result = evaluate_folder(detector, faces/'valid', bootstrap=50, progress=False)
    assert (result['n'], result['n_real'], result['unreadable']) == (11, 5, 1)
    assert list(result['bad'].items()) == [(f'real/{bad.name}',
                                            'damaged image (the file ends too early)')]

@pytest.mark.parametrize('n, told', [(0, 'nothing'), (1, '1 image is smaller than the 64 x 64 pix'),
                                     (3, '3 images are smaller than the 64 x 64 pixels that a')])
def test_small_images_are_judged_and_told(checkpoint, detector, faces, tmp_path, n, told):
    for p in sorted((faces/'valid'/'real').iterdir())[:n]: Image.new('RGB', (32, 90)).save(p)
    found = evaluate_folder(detector, faces/'valid', bootstrap=9, progress=False, corruption='blur:1')
    assert (found['n'], found['small']) == (12, n) and told in found['taken']
    curves = robustness_folder({'a': checkpoint}, faces/'valid', ['jpeg:75'], tmp_path, bootstrap=9)
    assert (curves['small'], curves['taken']) == (n, found['taken'])

def test_the_report_of_a_folder(detector, drawn, tmp_path):
    """Of a function from elsewhere nothing is seen inside, and what an earlier evaluation left is
    not shown as its own."""
    evaluate = lambda who: evaluate_folder(who, drawn, 'test', bootstrap=20, progress=False,
                                           out=tmp_path)
    evaluate(detector)
    ours, page = plt.imread(tmp_path/'figures'/'errors.png'), (tmp_path/'report.html').read_text()
    rows, wrong = load_json(tmp_path/'clusters.json')['table'], pd.read_csv(tmp_path/'errors.csv')
    assert len(wrong) and sum(r['n'] for r in rows) == 12
    assert sum(r['k'] for r in rows) == len(wrong) and 'alike to the model</h3>' in page
    p_fake = pd.read_csv(tmp_path/'predictions.csv').p_fake.to_numpy()
    evaluate(lambda paths: p_fake)
    theirs, page = plt.imread(tmp_path/'figures'/'errors.png'), (tmp_path/'report.html').read_text()
    assert theirs.shape[0] < .7 * ours.shape[0]  # no heatmaps below the images
    assert load_json(tmp_path/'clusters.json') == {} and 'cluster' not in page
    assert '<h2' in page and 'nothing is known of its weights' in page

def test_names_from_outside_are_escaped(detector, faces, tmp_path):
    for c in ('real', 'fake'):
        folder = (faces/'test'/c).rename(faces/'test'/f'{c}-')
        shutil.move(folder, faces/'<b>'/c/'<img src=x>')
    evaluate_folder(detector, faces/'<b>', bootstrap=9, progress=False, out=tmp_path/'<i>')
    page = (tmp_path/'<i>'/'report.html').read_text()
    assert '&lt;b&gt;' in page and '&lt;i&gt;' in page and '&lt;img src=x&gt;' in page
    assert not [bad for bad in ('<b>', '<i>', '<img src=x>') if bad in page]

def test_a_folder_of_one_class(detector, faces, tmp_path):
    shutil.rmtree(faces/'train'/'real')
    result = evaluate_folder(detector, faces/'train', bootstrap=20, progress=False, out=tmp_path)
    assert result['n_real'] == 0 and 'auc' not in result['metrics']
    assert 'accused 0 of 0' in (tmp_path/'report.html').read_text()
    assert {r['fakes'] for r in load_json(tmp_path/'clusters.json')['table']} == {1}
    assert not (tmp_path/'figures'/'curves.png').exists()

@pytest.mark.parametrize('theirs', ['config.yaml', 'robustness.json'])
def test_a_run_is_not_written_over(detector, drawn, tmp_path, theirs):
    (tmp_path/theirs).write_text('{}')
    with pytest.raises(FaceError, match='name another folder'):
        evaluate_folder(detector, drawn, out=tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [theirs]

def test_a_folder_that_cannot_be_judged(detector, faces, tmp_path):
    for p in (faces/'valid').rglob('*.jpg'): p.write_bytes(b'x')
    for root, split in ((faces/'valid', None), (faces/'train', 'test'),
                        (faces/'train'/'real', None), (tmp_path/'none', None)):
        with pytest.raises(FaceError) as e: predict_folder(detector, root, split, progress=False)
        assert str(root) in str(e.value) and '\n' not in str(e.value)

def test_numbers_between_marks(tmp_path):
    page = tmp_path/'a.md'
    page.write_text('<!-- a -->old<!-- /a --> kept \\1 <!-- b -->kept<!-- /b -->')
    fill_marks(page, 'a', 'new \\g<0>')
    fill_marks(page, 'a', markdown_table([dict(a='\\g<0>')]))
    new = '| a |\n| --- |\n| \\g<0> |'
    assert page.read_text() == f'<!-- a -->\n{new}\n<!-- /a --> kept \\1 <!-- b -->kept<!-- /b -->'
    with pytest.raises(FaceError): fill_marks(page, 'c', 'x')
